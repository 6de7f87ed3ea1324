"""Fitting any family with one or two parameters to many filters: ``f ≈ a · m(p, q) + b``.

The same damped Gauss–Newton steps as in `separable_solver`, with the model drawn as a whole and its
derivatives by differences, in float64. Slower, but for every family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from keyfilters.receptive_fields.families import Family
from keyfilters.threads import one_thread

__all__ = ["GeneralFit", "fit_general", "parameter_grid"]

STEPS = 8
DIFFERENCE = 1e-6


@dataclass(frozen=True, eq=False)
class GeneralFit:
    """Fits of one family to each of n filters.

    Attributes:
        first: ``(n,)`` the family's first parameter, σ in taps.
        second: ``(n,)`` its second parameter; NaN where it has none.
        r2: ``(n,)`` explained share of the variance over the taps.
        amplitude: ``(n,)`` of the model as rendered, not normalised.
        offset: ``(n,)`` per tap.
    """

    first: Tensor
    second: Tensor
    r2: Tensor
    amplitude: Tensor
    offset: Tensor


def bounds(family: Family, size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Bounds of the family's parameters: scales up to half the window, angles free."""
    top = max(size) / 2
    second = {
        "": (0.0, 0.0),
        "sigma_y": (0.0, top),
        "sigma_long": (0.0, 2 * top),
        "sigma_surround": (0.0, 2 * top),
        "alpha": (0.0, 5.0),
        "angle": (-math.inf, math.inf),
    }
    return (0.0, top), second[family.second]


def parameter_grid(family: Family, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Parameters from which fits start: every pair of a few scales and a few second parameters."""
    top = max(size) / 2
    scales = np.linspace(0.1, 1.0, 8 if family.second else 20) * top
    seconds = {
        "": np.zeros(1),
        "sigma_y": scales,
        "sigma_long": np.linspace(0.4, 1.6, 4) * top,
        "sigma_surround": np.linspace(0.25, 1.6, 10) * top,
        "alpha": np.array([0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0]),
        "angle": np.arange(8) * math.pi / 8,
    }
    first, second = np.meshgrid(scales, seconds[family.second], indexing="ij")
    different = np.abs(first - second) > 0.05 * top
    if family.second in ("sigma_long", "sigma_surround"):
        first, second = first[different], second[different]
    return torch.tensor(first.ravel()), torch.tensor(second.ravel())


@one_thread()
def fit_general(
    family: Family, filters: Tensor, first: Tensor, second: Tensor, steps: int = STEPS
) -> GeneralFit:
    """Fit one family to every filter, from given parameters.

    Args:
        family: what to fit.
        filters: ``(n, k_y, k_x)``.
        first: ``(n,)`` where to start.
        second: ``(n,)`` likewise; ignored by a family of one parameter.
        steps: damped Gauss–Newton steps.
    """
    size = (filters.shape[1], filters.shape[2])
    filters = filters.double()
    mean = filters.mean((1, 2))
    centred = (filters - mean[:, None, None]).flatten(1)
    total = (centred**2).sum(1).clamp_min(torch.finfo(filters.dtype).tiny)
    count = 2 if family.second else 1
    identity = torch.eye(count, dtype=filters.dtype, device=filters.device)
    limits = bounds(family, size)
    low, high = (torch.tensor([limit[i] for limit in limits[:count]]).to(filters) for i in (0, 1))
    parameters = torch.stack([first, second], dim=1)[:, :count].to(filters)
    damping = torch.full_like(mean, 1e-2)

    def draw(p: Tensor) -> Tensor:
        other = p[:, 1] if count == 2 else torch.zeros_like(p[:, 0])
        return family.render(p[:, 0], other, size).flatten(1)

    def evaluate(p: Tensor) -> tuple[Tensor, ...]:
        model = draw(p)
        slopes = [(draw(p + DIFFERENCE * unit) - model) / DIFFERENCE for unit in identity]
        level = model.mean(1)
        power = (model**2).sum(1)
        model = model - level[:, None]
        norm2 = (model**2).sum(1)
        shown = norm2 > 1e-9 * power
        safe = torch.where(shown, norm2, torch.ones_like(norm2))
        amplitude = torch.where(shown, (model * centred).sum(1) / safe, torch.zeros_like(norm2))
        share = amplitude**2 * norm2 / total
        jacobian = torch.stack([slope - slope.mean(1, keepdim=True) for slope in slopes], dim=2)
        along = torch.einsum("nt,ntp->np", model, jacobian) / safe[:, None]
        jacobian = amplitude[:, None, None] * (jacobian - model[:, :, None] * along[:, None])
        residual = centred - amplitude[:, None] * model
        hessian = torch.einsum("ntp,ntq->npq", jacobian, jacobian)
        return share, amplitude, level, hessian, torch.einsum("ntp,nt->np", jacobian, residual)

    state = evaluate(parameters)
    for _ in range(steps):
        share, _, _, hessian, gradient = state
        scale = torch.diag_embed(torch.diagonal(hessian, dim1=1, dim2=2)) * damping[:, None, None]
        ridge = (1e-9 * total + torch.finfo(filters.dtype).tiny)[:, None, None] * identity
        step = torch.linalg.solve(hessian + scale + ridge, gradient)
        proposal = torch.clamp(parameters + step, low, high)
        new = evaluate(proposal)
        better = new[0] > share
        parameters = torch.where(better[:, None], proposal, parameters)
        damping = torch.where(better, damping * 0.2, (damping * 10).clamp_min(1e-2))
        state = tuple(
            torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(new, state, strict=True)
        )
    share, amplitude, level = state[:3]
    second = parameters[:, 1] if count == 2 else torch.full_like(mean, math.nan)
    if family.second == "angle":
        second = second.remainder(2 * math.pi)
    offset = mean - amplitude * level
    return GeneralFit(parameters[:, 0], second, share.clamp(0.0, 1.0), amplitude, offset)

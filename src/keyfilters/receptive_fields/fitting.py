"""Fitting idealised receptive fields to a handful of filters, as lindeberg2026modelling does.

Method A weights ``|f|`` by ``|model at σ = 1|`` and turns the weighted variances into scales in
closed form; B solves for the scales at which the discrete model has those variances; C and D
minimise the ℓ1 and the ℓ2 distance to the normalised filter, with σx and σy free (C1, D1) or equal
(C2, D2). The joint variants share one σ among one-sided differences and smoothing, one among
centred first differences, and one among second-order forms (`Operator.group`): the geometric mean
of the single scales for A and B, the pooled residual (Σ of ℓ1, Σ of squared ℓ2) for C and D. The
sharpening form always takes (σ, α) from a fit of its own, in ℓ1 for C2 and C-joint, else in ℓ2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from torch import Tensor

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.receptive_fields.minimise import Loss, minimise
from keyfilters.receptive_fields.operators import (
    BORDERS,
    Border,
    Operator,
    normalized_filters,
    operator,
)
from keyfilters.scalespace import spread

__all__ = ["METHODS", "Fit", "fit_idealized"]

METHODS = ("A", "A-joint", "B", "B-joint", "C1", "C2", "C-joint", "D1", "D2", "D-joint")
LARGEST_ALPHA = 100.0
COLUMNS = ("sigma_x", "sigma_y", "alpha")

# σ² over the variance of the squared continuous Gaussian derivative of order 0, 1, 2 along an axis.
_CLOSED_FORM = (2.0, 2 / 3, 6 / 7)


@dataclass(frozen=True, eq=False)
class Fit:
    """Idealised models of a few filters.

    Attributes:
        table: one row a filter: filter (from 1), operator, sigma_x and sigma_y in taps, alpha (NaN
            where the form has none), l1_residual and l2_residual between model and normalised
            filter, and at_boundary: the parameters that ended at an end of their range, or "".
            Ranges are [0, k] for σ and [0, 100] for α. For B these include scales that come
            nearest to a variance which no scale has; for A-joint and B-joint they are the filter's
            own scales, of which the mean was taken.
        models: ``(n, k, k)`` float64, the models of the table.
        normalized: ``(n, k, k)`` float64, the filters brought to the amplitude of the models, see
            `Operator.normalize`.
        method: one of `METHODS`.
        border: how the models' outermost taps were drawn, see `Operator.render`.
    """

    table: pd.DataFrame
    models: NDArray[np.float64]
    normalized: NDArray[np.float64]
    method: str
    border: Border


def fit_idealized(
    filters: ArrayLike | Tensor,
    operators: Sequence[str],
    method: str = "B",
    *,
    border: Border = "published",
) -> Fit:
    """Fit every filter with the operator named for it (lindeberg2026modelling).

    Args:
        filters: ``(n, k, k)`` with k odd, at least 3.
        operators: n names, see `keyfilters.receptive_fields.operators`; y points upwards.
        method: one of `METHODS`.
        border: ``"published"`` draws the models' outermost taps as the published analysis does,
            ``"exact"`` as those of the untruncated kernel.

    Returns:
        Table of scales and residuals, models and normalised filters.

    Raises:
        KeyFiltersError: bad shapes, constant filters or such that are not finite, an unknown
            operator or method, or a filter that its operator cannot describe.

    >>> centred = np.array([[0, 0, 0], [0.5, 0, -0.5], [0, 0, 0]])
    >>> fit_idealized([centred], ["dx"], "D1").table[["sigma_x", "sigma_y", "at_boundary"]]
       sigma_x  sigma_y       at_boundary
    0      0.0      0.0  sigma_x, sigma_y
    """
    if method not in METHODS:
        tail = nearest(method, METHODS) or f"; expected one of {', '.join(METHODS)}"
        raise KeyFiltersError(f"no fitting method is called {method!r}{tail}")
    if border not in BORDERS:
        raise KeyFiltersError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")
    normalized, forms = normalized_filters(filters, operators)
    return fit_normalized(list(normalized), forms, method, border)


def fit_normalized(
    targets: list[Tensor], forms: list[Operator], method: str, border: Border = "published"
) -> Fit:
    """Fit filters that have the amplitude of their models already; see `fit_idealized`.

    Args:
        targets: n tensors ``(k, k)`` float64, each as `Operator.normalize` returns it.
        forms: n operators.
        method: one of `METHODS`.
        border: see `Operator.render`.

    Returns:
        As `fit_idealized`.
    """
    size = targets[0].shape[-1]
    parameters = np.full((len(forms), 3), np.nan)
    ended = [""] * len(forms)
    for members in _groups(forms, method):
        own, missed = _fit_group([(forms[i], targets[i]) for i in members], method, border)
        for i, row, names in zip(members, own, missed, strict=True):
            at_ends = names | _ended(row, size)
            parameters[i], ended[i] = row, ", ".join(name for name in COLUMNS if name in at_ends)
        if method in ("A-joint", "B-joint") and not forms[members[0]].sharpens:
            parameters[members, :2] = np.sqrt(np.prod(own[:, :2] ** (1 / len(own))))
    models = np.stack([
        _render(form, torch.tensor(row[None]), size, border)[0].numpy()
        for form, row in zip(forms, parameters, strict=True)
    ])  # fmt: skip
    normalized = torch.stack(targets).numpy()
    error = (models - normalized).reshape(len(forms), -1)
    table = pd.DataFrame(
        {
            "filter": np.arange(1, len(forms) + 1),
            "operator": [form.name for form in forms],
            **dict(zip(COLUMNS, parameters.T, strict=True)),
            "l1_residual": np.abs(error).sum(1),
            "l2_residual": np.linalg.norm(error, axis=1),
            "at_boundary": ended,
        }
    )
    return Fit(table, models, normalized, method, border)


def _groups(forms: Sequence[Operator], method: str) -> list[list[int]]:
    """Indices of filters that are fitted together."""
    groups: dict[str, list[int]] = {}
    for i, form in enumerate(forms):
        alone = form.sharpens or not method.endswith("joint")
        groups.setdefault(f"{form.family.group} {i * alone}", []).append(i)
    return list(groups.values())


def _fit_group(
    chosen: list[tuple[Operator, Tensor]], method: str, border: Border
) -> tuple[NDArray[np.float64], list[set[str]]]:
    """Fit filters together: their parameters ``(n, 3)`` as in `COLUMNS`, and those out of reach."""
    form, target = chosen[0]
    missed: list[set[str]] = [set() for _ in chosen]
    if form.sharpens:
        order = 1 if method in ("C2", "C-joint") else 2
        sigma, alpha = _fit_sharpening(target, order, border)
        return np.array([[sigma, sigma, alpha]]), missed
    if method[0] == "A":
        return np.array([[*_fit_closed_form(*one, border), np.nan] for one in chosen]), missed
    if method[0] == "B":
        fits = [_fit_variance(*one, border) for one in chosen]
        return np.array([[*sigmas, np.nan] for sigmas, _ in fits]), [names for _, names in fits]
    tied = method.endswith(("joint", "2")) or form.isotropic
    ranges = [(0.0, float(target.shape[-1]))] * (1 if tied else 2)
    best = minimise(_distance(chosen, 1 if method[0] == "C" else 2, border), ranges)
    return np.tile([best[0], best[-1], np.nan], (len(chosen), 1)), missed


def _render(form: Operator, points: Tensor, size: int, border: Border) -> Tensor:
    """Models of ``(m, 3)`` parameters as in `COLUMNS`."""
    alpha = points[:, 2] if form.sharpens else None
    return form.render(points[:, 0], points[:, 1], alpha, size=size, border=border)


def _fit_closed_form(form: Operator, target: Tensor, border: Border) -> tuple[float, float]:
    """Method A; the squared Laplacian of a Gaussian has variance σ²/2, as the Gaussian itself."""
    variance = _weighted_variance(form, target[None], border)[0]
    orders = (0, 0) if form.isotropic else form.order
    factor = torch.tensor([_CLOSED_FORM[order] for order in orders], dtype=torch.float64)
    sigma_x, sigma_y = (factor * variance).sqrt().tolist()
    return sigma_x, sigma_y


def _fit_variance(
    form: Operator, target: Tensor, border: Border
) -> tuple[tuple[float, float], set[str]]:
    """Method B: match the variance along one axis, with the other scale held at 1.

    Also returns the scales with which no variance up to the filter's, or down to it, is reached;
    they are those that come nearest.
    """
    size = target.shape[-1]
    wanted = _weighted_variance(form, target[None], border)[0]
    sigmas = torch.linspace(0, size, 40 * size + 1, dtype=torch.float64)

    def match(axis: int) -> tuple[float, bool]:
        def excess(sigma: Tensor) -> Tensor:
            scales = [
                sigma if form.isotropic or axis == i else torch.ones_like(sigma) for i in (0, 1)
            ]
            models = form.render(*scales, size=size, border=border)
            return _weighted_variance(form, models, border)[:, axis] - wanted[axis]

        values = excess(sigmas)
        above = values > 0
        crossed = torch.nonzero(above[:-1] != above[1:]).flatten().tolist()
        closest = int(values.abs().argmin())
        if not crossed or abs(values[closest]) < 1e-14:
            return float(sigmas[closest]), bool(abs(values[closest]) < 1e-14)
        # The smallest scale, should the variance not grow throughout.
        low, high = float(sigmas[crossed[0]]), float(sigmas[crossed[0] + 1])
        return float(brentq(lambda s: float(excess(sigmas.new_tensor([s]))), low, high)), True

    (sigma_x, met_x), (sigma_y, met_y) = match(0), match(1)
    missed = {name for name, met in (("sigma_x", met_x), ("sigma_y", met_y)) if not met}
    return (sigma_x, sigma_y), missed


def _weighted_variance(form: Operator, filters: Tensor, border: Border) -> Tensor:
    """Variances ``(n, 2)`` of ``|f| |model at σ = 1|``; their mean where one σ serves both."""
    one = torch.ones(1, dtype=torch.float64)
    weight = form.render(one, one, size=filters.shape[-1], border=border)
    variance = spread(filters, weight)[1].diagonal(dim1=1, dim2=2)
    return variance.mean(1, keepdim=True).expand(-1, 2) if form.isotropic else variance


def _distance(chosen: list[tuple[Operator, Tensor]], order: int, border: Border) -> Loss:
    """ℓ1 distance of models from their filters or squared ℓ2 distance, pooled over the filters."""

    def loss(points: Tensor) -> Tensor:
        total = torch.zeros(len(points), dtype=torch.float64)
        for form, target in chosen:
            size = target.shape[-1]
            models = form.render(points[:, 0], points[:, -1], size=size, border=border)
            error = (models - target).flatten(1)
            total += error.abs().sum(1) if order == 1 else error.square().sum(1)
        return total

    return loss


def _fit_sharpening(target: Tensor, order: int, border: Border) -> tuple[float, float]:
    """(σ, α) of least ℓ1 or ℓ2 distance: α in closed form for every σ, then a line search."""
    size = target.shape[-1]
    rest = -target.flatten()
    rest[size**2 // 2] += 1  # δ₀ − filter: ‖rest − α ∇²₅T‖ is to be small

    def best_alpha(sigma: Tensor) -> tuple[Tensor, Tensor]:
        laplacian = operator("laplacian").render(sigma, sigma, size=size, border=border)
        surround = laplacian.flatten(1)
        if order == 2:
            power = surround.square().sum(1)
            alpha = (rest * surround).sum(1) / torch.where(power > 0, power, 1)
        else:  # a weighted median
            weight = surround.abs()
            ratio = rest / torch.where(weight > 0, surround, 1)
            ratio, rank = ratio.sort(1)
            reached = weight.gather(1, rank).cumsum(1)
            middle = (reached < reached[:, -1:] / 2).sum(1, keepdim=True)
            alpha = ratio.gather(1, middle.clamp(max=ratio.shape[1] - 1))[:, 0]
        alpha = alpha.clamp(0, LARGEST_ALPHA)  # the distance is convex in α
        error = rest - alpha[:, None] * surround
        return alpha, error.abs().sum(1) if order == 1 else error.square().sum(1)

    (sigma,) = minimise(lambda points: best_alpha(points[:, 0])[1], [(0.0, size)])
    alpha, _ = best_alpha(torch.tensor([sigma], dtype=torch.float64))
    return sigma, float(alpha)


def _ended(row: NDArray[np.float64], size: int) -> set[str]:
    """Names of the parameters that lie at an end of their range."""
    tops = (size, size, LARGEST_ALPHA)
    ends = zip(COLUMNS, row, tops, strict=True)
    return {name for name, value, top in ends if value <= 0 or value >= top}

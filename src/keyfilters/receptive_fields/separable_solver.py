"""Fitting separable families to many filters at once: ``f ≈ a · u(σx) ⊗ v(σy) + b``.

Everything that a fit needs of the model ``m = u ⊗ v`` and of its derivatives are inner products of
vectors of one side's length, since ``⟨u⊗v, u'⊗v'⟩ = (u·u')(v·v')`` and ``⟨u⊗v, F⟩ = v·F·u``. So a
million filters cost little more than reading them a few times. The amplitude and the offset have a
closed form; the two variances are found from a grid by damped Gauss–Newton steps on what is left
(variable projection).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from keyfilters.scalespace.differences import OPERATORS
from keyfilters.scalespace.gaussian import node_count

__all__ = ["ORDER_2", "SeparableFit", "fit_separable", "starts"]

ORDER_2 = ("0", "d", "d+", "d-", "dd")  # orders 0 to 2, centred and one-sided
GRID = 6  # scales along each axis from which the steps start
STEPS = 6


class AxisKernels:
    """Operators of order 0 to 2 applied to the discrete Gaussian along one axis, and derivatives.

    The quadrature of `keyfilters.scalespace.discrete_gaussian` with the operators folded into its
    table, so that a kernel costs one exponential a node and one product of matrices. There are as
    many nodes as the widest kernel of the window needs.

    Args:
        taps: length of the window, odd.
        up: whether the axis points against the order of the rows, as y does.
        like: tensor whose dtype and device are used.
    """

    def __init__(self, taps: int, *, up: bool, like: Tensor) -> None:
        radius = taps // 2
        half = node_count((taps / 2) ** 2, radius + 1) // 2
        theta = torch.arange(half + 1, dtype=torch.float64) * (math.pi / half)
        weight = torch.full_like(theta, 1 / half)
        weight[0] = weight[-1] = 0.5 / half
        offsets = torch.arange(-radius - 1, radius + 2, dtype=torch.float64)
        table = weight[:, None] * torch.cos(theta[:, None] * offsets)
        columns = []
        for name in ORDER_2:
            before, here, after = OPERATORS[name]
            cut = before * table[:, :-2] + here * table[:, 1:-1] + after * table[:, 2:]
            columns.append(cut.flip(1) if up else cut)
        self.taps = taps
        decay = torch.cos(theta) - 1
        self.decay = decay.to(like)
        self.table = torch.cat(columns, dim=1).to(like)
        self.slope_table = (decay[:, None] * torch.cat(columns, dim=1)).to(like)

    def all(self, variance: Tensor) -> Tensor:
        """Kernels of all operators: ``(n,)`` variances -> ``(n, 5, taps)``."""
        return self._of(variance, self.table)

    def pick(self, variance: Tensor, operator: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels and their derivatives in the variance, of one operator each: ``(n, taps)``."""
        exponential = torch.exp(variance[:, None] * self.decay)
        rows = torch.arange(len(variance), device=variance.device)
        shape = (-1, len(ORDER_2), self.taps)
        kernel = (exponential @ self.table).view(shape)[rows, operator]
        slope = (exponential @ self.slope_table).view(shape)[rows, operator]
        return kernel, slope

    def _of(self, variance: Tensor, table: Tensor) -> Tensor:
        values = torch.exp(variance[:, None] * self.decay) @ table
        return values.view(len(variance), len(ORDER_2), self.taps)


@dataclass(frozen=True, eq=False)
class SeparableFit:
    """Fits of one family to each of n filters.

    Attributes:
        variance_x: ``(n,)`` in taps squared.
        variance_y: ``(n,)``.
        r2: ``(n,)`` explained share of the variance over the taps.
        amplitude: ``(n,)`` of the model as rendered, not normalised.
        offset: ``(n,)`` per tap.
    """

    variance_x: Tensor
    variance_y: Tensor
    r2: Tensor
    amplitude: Tensor
    offset: Tensor


def largest_variance(size: tuple[int, int]) -> tuple[float, float]:
    """Bounds of (variance_x, variance_y): σ up to half the window's side, where shapes go flat."""
    return (size[1] / 2) ** 2, (size[0] / 2) ** 2


def starts(filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score all pairs of operators on a grid of scales by two products of matrices.

    Args:
        filters: ``(n, k_y, k_x)``, any mean.

    Returns:
        Best explained share on the grid ``(n, 25)``, in the order ``operator_x * 5 + operator_y``,
        and the variances there, x and y, ``(n, 25)`` each.
    """
    count, k_y, k_x = filters.shape
    top_x, top_y = largest_variance((k_y, k_x))
    sigma = torch.linspace(0.15, 1.0, GRID, dtype=filters.dtype, device=filters.device)
    variance_x, variance_y = sigma**2 * top_x, sigma**2 * top_y
    # (operator, scale) pairs along each axis
    u = AxisKernels(k_x, up=False, like=filters).all(variance_x).transpose(0, 1).flatten(0, 1)
    v = AxisKernels(k_y, up=True, like=filters).all(variance_y).transpose(0, 1).flatten(0, 1)
    power = torch.outer((u**2).sum(1), (v**2).sum(1))
    mean = torch.outer(u.sum(1), v.sum(1)) ** 2 / (k_y * k_x)
    norm2 = power - mean
    weight = torch.where(norm2 > 1e-9 * power, norm2.rsqrt(), torch.zeros_like(norm2))
    centred = filters - filters.mean((1, 2), keepdim=True)
    total = (centred**2).sum((1, 2)).clamp_min(torch.finfo(filters.dtype).tiny)
    response = (u @ centred.transpose(1, 2)) @ v.T  # (n, 5 * GRID, 5 * GRID)
    response = (response * weight).abs_().view(count, 5, GRID, 5, GRID).transpose(2, 3)
    best, where = response.reshape(count, 25, GRID * GRID).max(2)
    share = best**2 / total[:, None]
    return share, variance_x[where // GRID], variance_y[where % GRID]


def fit_separable(
    filters: Tensor,
    operator_x: Tensor,
    operator_y: Tensor,
    variance_x: Tensor,
    variance_y: Tensor,
    steps: int = STEPS,
) -> SeparableFit:
    """Fit one pair of operators to each filter, from given variances.

    Args:
        filters: ``(n, k_y, k_x)``.
        operator_x: ``(n,)`` index into `ORDER_2`.
        operator_y: ``(n,)``.
        variance_x: ``(n,)`` where to start, in taps squared.
        variance_y: ``(n,)``.
        steps: damped Gauss–Newton steps.
    """
    _, k_y, k_x = filters.shape
    mean = filters.mean((1, 2))
    centred = filters - mean[:, None, None]
    total = (centred**2).sum((1, 2)).clamp_min(torch.finfo(filters.dtype).tiny)
    axes = AxisKernels(k_x, up=False, like=filters), AxisKernels(k_y, up=True, like=filters)
    tops = largest_variance((k_y, k_x))
    damping = torch.full_like(variance_x, 1e-2)

    def evaluate(s_x: Tensor, s_y: Tensor) -> tuple[Tensor, ...]:
        u, du = axes[0].pick(s_x, operator_x)
        v, dv = axes[1].pick(s_y, operator_y)
        along_x = torch.bmm(v[:, None], centred)[:, 0]  # v · F, a vector along x
        slope_x = torch.bmm(dv[:, None], centred)[:, 0]
        p0, p1, p2 = (u * along_x).sum(1), (du * along_x).sum(1), (u * slope_x).sum(1)
        uu, ud, dd = (u * u).sum(1), (u * du).sum(1), (du * du).sum(1)
        vv, vd, ee = (v * v).sum(1), (v * dv).sum(1), (dv * dv).sum(1)
        su, sd, sv, se = u.sum(1), du.sum(1), v.sum(1), dv.sum(1)
        taps = k_x * k_y
        n00 = uu * vv - (su * sv) ** 2 / taps
        n01 = ud * vv - su * sd * sv * sv / taps
        n02 = uu * vd - su * su * sv * se / taps
        n11 = dd * vv - (sd * sv) ** 2 / taps
        n12 = ud * vd - su * sd * sv * se / taps
        n22 = uu * ee - (su * se) ** 2 / taps
        shown = n00 > 1e-9 * uu * vv
        safe = torch.where(shown, n00, torch.ones_like(n00))
        amplitude = torch.where(shown, p0 / safe, torch.zeros_like(p0))
        share = amplitude * p0 / total
        # Gauss–Newton in the variances, with the amplitude projected out.
        a2 = amplitude**2
        h11, h22 = a2 * (n11 - n01**2 / safe), a2 * (n22 - n02**2 / safe)
        h12 = a2 * (n12 - n01 * n02 / safe)
        g1, g2 = amplitude * (p1 - amplitude * n01), amplitude * (p2 - amplitude * n02)
        return share, amplitude, su * sv / taps, h11, h12, h22, g1, g2

    state = evaluate(variance_x, variance_y)
    for _ in range(steps):
        share, _, _, h11, h12, h22, g1, g2 = state
        d11 = h11 * (1 + damping) + 1e-12 * total
        d22 = h22 * (1 + damping) + 1e-12 * total
        determinant = (d11 * d22 - h12**2).clamp_min(torch.finfo(filters.dtype).tiny)
        new_x = (variance_x + (d22 * g1 - h12 * g2) / determinant).clamp(0.0, tops[0])
        new_y = (variance_y + (d11 * g2 - h12 * g1) / determinant).clamp(0.0, tops[1])
        new = evaluate(new_x, new_y)
        better = new[0] > share
        variance_x = torch.where(better, new_x, variance_x)
        variance_y = torch.where(better, new_y, variance_y)
        damping = torch.where(better, damping * 0.2, (damping * 10).clamp_min(1e-2))
        state = tuple(torch.where(better, a, b) for a, b in zip(new, state, strict=True))
    share, amplitude, model_mean = state[:3]
    return SeparableFit(
        variance_x, variance_y, share.clamp(0.0, 1.0), amplitude, mean - amplitude * model_mean
    )

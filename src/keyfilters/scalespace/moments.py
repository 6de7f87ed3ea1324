"""Spread measures: where a filter lies in its window, how far it reaches, how it is normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.sizes import tap_offsets

__all__ = [
    "dc_offset",
    "grid",
    "half_grid_offset",
    "monomial_response",
    "separability_index",
    "spread",
]

BLOCK = 256  # filters whose DC offsets are looked for at once, to bound the memory


def grid(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates (x, y) of every tap: x to the right, y upwards, origin at the centre.

    Args:
        size: ``(k_y, k_x)``.
        like: tensor whose dtype and device the result takes.

    Returns:
        Two ``(k_y, k_x)`` tensors in taps.
    """
    k_y, k_x = size
    y, x = tap_offsets(k_y, like).flip(0), tap_offsets(k_x, like)
    return x.expand(k_y, k_x), y[:, None].expand(k_y, k_x)


def spread(filters: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of ``|f|`` over the window (lindeberg2026modelling).

    Args:
        filters: ``(n, k_y, k_x)``, none of them zero everywhere.
        weight: ``(k_y, k_x)`` or ``(n, k_y, k_x)``; the measures are then those of
            ``|weight| |f|``, as the fitting methods A and B take them.

    Returns:
        Mean ``(n, 2)`` as (x, y) in taps, x to the right, y upwards, origin at the centre tap, and
        covariance ``(n, 2, 2)`` in taps squared, with weights ``|f| / Σ|f|``.

    Raises:
        KeyFiltersError: not three dimensions, or a filter of zeros.

    >>> mean, covariance = spread(torch.tensor([[[0.0, 0, -1], [0, 0, 0], [0, 0, 0]]]))
    >>> mean.tolist(), covariance.tolist()
    ([[1.0, 1.0]], [[[0.0, 0.0], [0.0, 0.0]]])
    """
    _check(filters)
    mass = filters.abs() if weight is None else (filters * weight).abs()
    mass = mass.flatten(1)
    total = mass.sum(1, keepdim=True)
    if not bool((total > 0).all()):
        raise KeyFiltersError("a filter of zeros (or NaN) has no spread")
    x, y = grid((filters.shape[1], filters.shape[2]), filters)
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    mass = mass / total
    mean = mass @ points
    offset = points[None] - mean[:, None]
    return mean, torch.einsum("nt,nti,ntj->nij", mass, offset, offset)


def separability_index(filters: Tensor) -> Tensor:
    """Return ``|C_xy| / √(C_xx C_yy)`` of the covariance of ``|f|``: near 0 for separable filters.

    A separable filter has 0; 1 is reached on an oblique line. Where ``|f|`` lies on one row or one
    column the index is 0. After the spread measures of lindeberg2026modelling.

    Args:
        filters: ``(n, k_y, k_x)``.

    Returns:
        ``(n,)`` in [0, 1].

    Raises:
        KeyFiltersError: as for `spread`.

    >>> separability_index(torch.stack([torch.ones(3, 3), torch.eye(3)])).tolist()
    [0.0, 1.0]
    """
    _, covariance = spread(filters)
    scale = (covariance[:, 0, 0] * covariance[:, 1, 1]).sqrt()
    index = covariance[:, 0, 1].abs() / torch.where(scale > 0, scale, 1)
    return index.clamp(max=1)


def half_grid_offset(filters: Tensor) -> Tensor:
    """Return the larger of ``|x̄|`` and ``|ȳ|``, the mean of ``|f|`` (lindeberg2026modelling).

    It is near 0 for filters centred on a tap and near one half for one-sided differences.

    Args:
        filters: ``(n, k_y, k_x)``.

    Returns:
        ``(n,)`` in taps.

    Raises:
        KeyFiltersError: as for `spread`.

    >>> half_grid_offset(torch.tensor([[[0.0, 0, 0], [0, -1, 1], [0, 0, 0]]])).tolist()
    [0.5]
    """
    return spread(filters)[0].abs().amax(1)


def monomial_response(filters: Tensor, order: tuple[int, int]) -> Tensor:
    """Return the response to ``(x − x̄)^p (y − ȳ)^q / (p! q!)``, with (x̄, ȳ) the mean of ``|f|``.

    The response is the convolution evaluated at the centre, so the filter meets the mirrored
    monomial: ``Σ f(x, y) (−x − x̄)^p (−y − ȳ)^q / (p! q!)`` (lindeberg2026modelling, for first
    orders). A derivative of a kernel of unit sum answers its own monomial with 1.

    Args:
        filters: ``(n, k_y, k_x)``.
        order: (p, q), along x and along y.

    Returns:
        ``(n,)``.

    Raises:
        KeyFiltersError: as for `spread`, or a negative order.

    >>> centred = torch.tensor([[[0.0, 0, 0], [0.5, 0, -0.5], [0, 0, 0]]])
    >>> monomial_response(centred, (1, 0)).tolist()
    [1.0]
    """
    p, q = order
    if p < 0 or q < 0:
        raise KeyFiltersError(f"orders of a monomial are not negative, got {order}")
    mean, _ = spread(filters)
    x, y = grid((filters.shape[1], filters.shape[2]), filters)
    along_x = (-x - mean[:, 0, None, None]) ** p
    along_y = (-y - mean[:, 1, None, None]) ** q
    scale = math.factorial(p) * math.factorial(q)
    return (filters * along_x * along_y).sum((1, 2)) / scale


def dc_offset(filters: Tensor) -> Tensor:
    """Return the constant Ĉ that minimises ``√det cov(|f − C|)`` over C (lindeberg2026modelling).

    It is the level on which a compact filter stands. The minimum over [min f, max f] is global:
    the measure is smooth between neighbouring tap values, so each such interval is looked through
    before the best is refined.

    Args:
        filters: ``(n, k_y, k_x)``, none of them constant.

    Returns:
        ``(n,)`` in the units of the taps.

    Raises:
        KeyFiltersError: not three dimensions, or a filter that is constant or not finite.

    >>> dc_offset(torch.tensor([[[0.2, 0.2, 0.2], [0.2, 0.7, 0.2], [0.2, 0.2, 0.2]]])).tolist()
    [0.2...]
    """
    _check(filters)
    flat = filters.detach().flatten(1).to(torch.float64)
    if not bool((flat.amax(1) > flat.amin(1)).all()):
        raise KeyFiltersError("a filter that is constant (or NaN) has no DC offset")
    size = (filters.shape[1], filters.shape[2])
    parts = [_dc_offset(block, size) for block in flat.split(BLOCK)]
    return torch.cat(parts).to(filters) if parts else filters.new_zeros(0)


def _dc_offset(flat: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = (axis.flatten() for axis in grid(size, flat))
    basis = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1)

    def area(level: Tensor) -> Tensor:
        """√det cov(|f − C|) for levels ``(n, m)``; infinite where nothing is left."""
        mass, *moments = ((flat[:, None] - level[..., None]).abs() @ basis).unbind(-1)
        m_x, m_y, m_xx, m_yy, m_xy = (moment / mass.clamp(min=1e-300) for moment in moments)
        det = (m_xx - m_x * m_x) * (m_yy - m_y * m_y) - (m_xy - m_x * m_y) ** 2
        return torch.where(mass > 0, det.clamp(min=0).sqrt(), math.inf)

    def around(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = area(levels).argmin(1, keepdim=True)
        last = levels.shape[1] - 1
        below, above = (best - 1).clamp(min=0), (best + 1).clamp(max=last)
        return levels.gather(1, below), levels.gather(1, best), levels.gather(1, above)

    # Tap values, where |f - C| has its kinks, and eight levels in every interval between them.
    taps = flat.sort(1).values
    inside = torch.arange(8, dtype=flat.dtype, device=flat.device) / 8
    steps = taps[:, :-1, None] + taps.diff(dim=1)[..., None] * inside
    below, best, above = around(torch.cat([steps.flatten(1), taps[:, -1:]], dim=1))
    for _ in range(40):
        # The best level so far stays among the candidates, so that a kink is never lost.
        quarters = torch.arange(5, dtype=flat.dtype, device=flat.device) / 4
        left, right = below + (best - below) * quarters, best + (above - best) * quarters
        below, best, above = around(torch.cat([left, right[:, 1:]], dim=1))
    return best[:, 0]


def _check(filters: Tensor) -> None:
    if filters.ndim != 3:
        shape = tuple(filters.shape)
        raise KeyFiltersError(f"expected filters of shape (n, k_y, k_x), got {shape}")

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

    It is the level on which a compact filter stands. The minimum is global, and one of the tap
    values: while C goes from one tap value to the next, ``|f − C| / Σ|f − C|`` is a mixture of its
    two ends, the covariance of a mixture is at least the mixture of the covariances, and ``√det``
    of 2×2 covariances is concave. Of several best levels the lowest is taken.

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
    if not bool(((flat.amax(1) > flat.amin(1)) & flat.isfinite().all(1)).all()):
        raise KeyFiltersError("a filter that is constant or not finite has no DC offset")
    size = (filters.shape[1], filters.shape[2])
    parts = [_dc_offset(block, size) for block in flat.split(BLOCK)]
    return torch.cat(parts).to(filters) if parts else filters.new_zeros(0)


def _dc_offset(flat: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the tap value C ``(n,)`` with the least det cov(|f − C|) of filters ``(n, taps)``."""
    x, y = (axis.flatten() for axis in grid(size, flat))
    basis = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1)
    levels = flat.sort(1).values
    mass, *moments = ((flat[:, None] - levels[..., None]).abs() @ basis).unbind(-1)
    m_x, m_y, m_xx, m_yy, m_xy = (moment / mass for moment in moments)
    det = (m_xx - m_x * m_x) * (m_yy - m_y * m_y) - (m_xy - m_x * m_y) ** 2
    return levels.gather(1, det.clamp(min=0).argmin(1, keepdim=True))[:, 0]


def _check(filters: Tensor) -> None:
    if filters.ndim != 3:
        shape = tuple(filters.shape)
        raise KeyFiltersError(f"expected filters of shape (n, k_y, k_x), got {shape}")

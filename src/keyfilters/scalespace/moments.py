"""Spread measures: where a filter lies in its window and how far it reaches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid", "spread"]


def grid(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates (x, y) of every tap: x to the right, y upwards, origin at the centre.

    Args:
        size: ``(k_y, k_x)``.
        like: tensor whose dtype and device the result takes.

    Returns:
        Two ``(k_y, k_x)`` tensors in taps.
    """
    k_y, k_x = size
    y = (k_y - 1) / 2 - torch.arange(k_y, dtype=like.dtype, device=like.device)
    x = torch.arange(k_x, dtype=like.dtype, device=like.device) - (k_x - 1) / 2
    return x.expand(k_y, k_x), y[:, None].expand(k_y, k_x)


def spread(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of ``|f|`` over the window (lindeberg2026modelling).

    Args:
        filters: ``(n, k_y, k_x)``, none of them zero everywhere.

    Returns:
        Mean ``(n, 2)`` as (x, y) in taps, x to the right, y upwards, origin at the centre tap, and
        covariance ``(n, 2, 2)`` in taps squared, with weights ``|f| / Σ|f|``.

    Raises:
        ValueError: not three dimensions, or a filter of zeros.

    >>> mean, covariance = spread(torch.tensor([[[0.0, 0, -1], [0, 0, 0], [0, 0, 0]]]))
    >>> mean.tolist(), covariance.tolist()
    ([[1.0, 1.0]], [[[0.0, 0.0], [0.0, 0.0]]])
    """
    if filters.ndim != 3:
        raise ValueError(f"expected filters of shape (n, k_y, k_x), got {tuple(filters.shape)}")
    weight = filters.abs().flatten(1)
    total = weight.sum(1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("a filter of zeros (or NaN) has no spread")
    x, y = grid((filters.shape[1], filters.shape[2]), filters)
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    weight = weight / total
    mean = weight @ points
    offset = points[None] - mean[:, None]
    return mean, torch.einsum("nt,nti,ntj->nij", weight, offset, offset)

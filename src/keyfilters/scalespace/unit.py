"""The centred unit form, in which filters are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["centred_unit"]


def centred_unit(filters: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return ``(f - mean f) / ‖f - mean f‖₂`` of every filter, flattened.

    The dissimilarity of two filters is 1 minus the inner product of these forms, in [0, 2]
    (babaiee2024unveiling).

    Args:
        filters: ``(n, k_y, k_x)`` or ``(n, taps)``; computed in float64.

    Returns:
        ``(n, taps)`` float32.

    Raises:
        ValueError: a filter is constant or not finite, so that it has no such form.

    >>> centred_unit(np.array([[[3.0, 1.0], [1.0, 3.0]]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    flat = np.asarray(filters, dtype=np.float64).reshape(len(filters), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    largest = np.abs(flat).max(axis=1, keepdims=True, initial=0.0)
    if not (norm > 1e-12 * largest).all():
        bad = int(np.flatnonzero(~(norm > 1e-12 * largest))[0])
        raise ValueError(f"filter {bad} is constant or not finite; it has no centred unit form")
    return (centred / norm).astype(np.float32)

"""The centred unit form, in which filters are compared, and which filters have none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError

__all__ = ["DEAD_BELOW", "centred_unit", "why_unusable"]

DEAD_BELOW = 1e-4  # babaiee2024unveiling drops filters whose taps are all this small
EQUAL = 1e-6  # taps that differ by less of the largest are equal to rounding in float32


def why_unusable(filters: NDArray[Any], *, dead_below: float = DEAD_BELOW) -> NDArray[np.object_]:
    """Say of every filter why it has no shape to study, or the empty string.

    Args:
        filters: ``(n, k_y, k_x)``.
        dead_below: largest absolute value of a dead filter's taps, as in babaiee2024unveiling.

    Returns:
        ``(n,)`` strings: ``"non-finite"`` (a NaN or infinite tap), ``"dead"`` (all taps at most
        `dead_below` in absolute value), ``"constant"`` (all taps equal, so
        nothing remains after centring) or ``""``.

    >>> why_unusable(np.array([[[0, 0]], [[1, 1]], [[np.nan, 1]], [[0, 1]]], np.float32)).tolist()
    ['dead', 'constant', 'non-finite', '']
    """
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    finite = np.asarray(np.isfinite(flat).all(axis=1))
    flat = np.where(finite[:, None], flat, 0.0)
    spread = np.ptp(flat, axis=1)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    flaw = np.full(len(filters), "", dtype=object)
    flaw[spread <= EQUAL * largest] = "constant"
    flaw[largest <= dead_below] = "dead"
    flaw[~finite] = "non-finite"
    return flaw


def centred_unit(filters: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return ``(f - mean f) / ‖f - mean f‖₂`` of every filter, flattened.

    The dissimilarity of two filters is 1 minus the inner product of these forms, in [0, 2]
    (babaiee2024unveiling).

    Args:
        filters: ``(n, k_y, k_x)`` or ``(n, taps)``; computed in float64.

    Returns:
        ``(n, taps)`` float32.

    Raises:
        KeyFiltersError: a filter is constant or not finite, so that it has no such form.

    >>> centred_unit(np.array([[[3.0, 1.0], [1.0, 3.0]]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    flat = np.asarray(filters, dtype=np.float64).reshape(len(filters), -1)
    bad = why_unusable(flat, dead_below=0.0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise KeyFiltersError(f"filter {first} is {bad[first]}; it has no centred unit form")
    centred = flat - flat.mean(axis=1, keepdims=True)
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)

"""Null models: what a claim about filters is worth if it also holds for these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyfilters.scalespace import centred_unit

__all__ = ["NULLS", "gaussian_null", "null_filters", "tap_permuted_null"]


def gaussian_null(count: int, taps: int, seed: int) -> NDArray[np.float32]:
    """Return random filters without any structure: independent normal taps.

    Args:
        count: number of filters.
        taps: taps per filter.
        seed: of the random generator.

    Returns:
        ``(count, taps)`` centred and of unit norm, uniform on the sphere of such filters.
    """
    return centred_unit(np.random.default_rng(seed).standard_normal((count, taps)))


def tap_permuted_null(unit: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return the same filters with the taps of each shuffled by a permutation of its own.

    It keeps every filter's values, so also how much one tap stands out, and destroys only their
    arrangement in space.

    Args:
        unit: ``(n, taps)``.
        seed: of the random generator.
    """
    return np.random.default_rng(seed).permuted(unit, axis=1)


NULLS = {"gaussian": "Gaussian filters", "tap-permuted": "the same filters, taps shuffled"}


def null_filters(name: str, unit: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return as many null filters as there are in `unit`; `name` is a key of `NULLS`."""
    if name == "gaussian":
        return gaussian_null(len(unit), unit.shape[1], seed)
    if name == "tap-permuted":
        return tap_permuted_null(unit, seed)
    raise ValueError(f"unknown null model {name!r}; expected one of {', '.join(NULLS)}")

"""Do different seeds, and different methods, find the same patterns?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from keyfilters.clusters.patterns import group_codes
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes, nearest_prototype

__all__ = ["pattern_agreement"]


def pattern_agreement(
    codes: Sequence[PrototypeSet],
    seeds: Sequence[int],
    unit: NDArray[np.float32],
    threshold: float,
) -> dict[str, float]:
    """Return adjusted Rand indices of the patterns that filters are assigned to.

    The index is 1 for equal partitions and 0 on average for unrelated ones. Its null is the same
    function of null filters and of the codes fitted to them.

    Args:
        codes: decoded filters of 1-D autoencoders fitted to `unit`, one a seed.
        seeds: of the autoencoders.
        unit: ``(n, taps)`` centred unit filters.
        threshold: dissimilarity below which two filters count as alike.

    Returns:
        Mean over pairs of seeds: ``autoencoder seeds``, ``k-means seeds`` (with as many centres as
        there are patterns); mean over seeds: ``autoencoder and k-means``. Pairs of one seed give
        NaN.
    """
    from sklearn.metrics import adjusted_rand_score

    by_code = [group_codes(code.prototypes, unit, threshold) for code in codes]
    by_kmeans = [
        nearest_prototype(unit, kmeans_prototypes(unit, len(np.unique(labels)), seed))[0]
        for labels, seed in zip(by_code, seeds, strict=True)
    ]

    def between_seeds(labels: list[NDArray[np.int64]]) -> float:
        pairs = [adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]
        return float(np.mean(pairs)) if pairs else float("nan")

    across = [adjusted_rand_score(a, b) for a, b in zip(by_code, by_kmeans, strict=True)]
    return {
        "autoencoder seeds": between_seeds(by_code),
        "k-means seeds": between_seeds(by_kmeans),
        "autoencoder and k-means": float(np.mean(across)),
    }

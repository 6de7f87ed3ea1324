"""Do different seeds, and different methods, find the same patterns?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from keyfilters.clusters.autoencoder import CodeAutoencoder
from keyfilters.clusters.nulls import gaussian_null
from keyfilters.clusters.patterns import find_patterns
from keyfilters.clusters.prototypes import kmeans_prototypes, nearest_prototype

__all__ = ["pattern_agreement"]


def pattern_agreement(
    autoencoders: Sequence[CodeAutoencoder],
    unit: NDArray[np.float32],
    size: tuple[int, int],
    threshold: float,
) -> dict[str, float]:
    """Return adjusted Rand indices of the patterns that filters are assigned to.

    The index is 1 for equal partitions and 0 on average for unrelated ones.

    Args:
        autoencoders: fitted to `unit`, one a seed.
        unit: ``(n, taps)`` centred unit filters.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which two filters count as alike.

    Returns:
        Mean over pairs of seeds: ``autoencoder seeds``, ``k-means seeds`` (with as many centres as
        there are patterns); mean over seeds: ``autoencoder and k-means``; and the control
        ``autoencoder seeds on gaussian``. Pairs of one seed give NaN.
    """
    from sklearn.metrics import adjusted_rand_score

    seeds = [auto.seed for auto in autoencoders]
    patterns = [find_patterns(auto, unit, size, threshold) for auto in autoencoders]
    by_code = [p.index for p in patterns]
    by_kmeans = [
        nearest_prototype(unit, kmeans_prototypes(unit, len(p.table), seed))[0]
        for p, seed in zip(patterns, seeds, strict=True)
    ]
    random = gaussian_null(len(unit), unit.shape[1], seeds[0] + 2000)
    on_random = [
        find_patterns(CodeAutoencoder(1, seed).fit(random), random, size, threshold).index
        for seed in seeds[:2]
    ]

    def between_seeds(labels: list[NDArray[np.int64]]) -> float:
        pairs = [adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]
        return float(np.mean(pairs)) if pairs else float("nan")

    across = [adjusted_rand_score(a, b) for a, b in zip(by_code, by_kmeans, strict=True)]
    return {
        "autoencoder seeds": between_seeds(by_code),
        "k-means seeds": between_seeds(by_kmeans),
        "autoencoder and k-means": float(np.mean(across)),
        "autoencoder seeds on gaussian": between_seeds(on_random),
    }

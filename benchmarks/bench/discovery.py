"""Finding a few keys for many filters, beside the k-means of scikit-learn and of faiss, and a loop.

How well a way did is the mean over the filters of the largest squared cosine with one of its keys.
Discovery chooses among candidates so as to explain most; k-means is what one would try first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import keyfilters as kf
from keyfilters.discovery.elimination import eliminate
from keyfilters.learned_filters import kmeans_prototypes, learn_filters

from .filters import bank_of, real, unit_rows
from .rivals import explained, kmeans_ways
from .runner import Arm, Comparison

KEYS = 8
CANDIDATES = 50
QUALITY = "r² with the nearest key, mean"


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield the search for keys, learned lines, k-means prototypes, and the elimination alone."""
    filters = real(5)
    assert filters is not None
    filters = filters[: max(400, round(len(filters) * scale))]
    unit = unit_rows(filters)
    bank = bank_of(filters)

    def discover() -> float:
        found = kf.discover_keys(bank, size=5, keys=KEYS, nulls=(), seed=0)
        return explained(unit, found.keys.filters.reshape(KEYS, -1))

    def lines() -> float:
        found = learn_filters(filters, KEYS, "lines")
        return explained(unit, found.reshape(KEYS, -1))

    ways = [Arm(name, run) for name, run in kmeans_ways(unit, KEYS).items()]
    work = f"{KEYS} keys for {len(filters):,} trained 5×5"
    names = "kf.discover_keys, no nulls", 'keys "lines", 4 starts'
    yield Comparison(
        "discovery",
        work,
        "search",
        Arm(names[0], discover),
        tuple(ways),
        quality=QUALITY,
        rounds=3,
    )
    yield Comparison(
        "discovery", work, "search", Arm(names[1], lines), tuple(ways), quality=QUALITY
    )
    count = 32
    yield Comparison(
        "clustering",
        f"{count} prototypes of {len(filters):,} trained 5×5",
        "fit",
        Arm(
            "kmeans_prototypes, 4 starts",
            lambda: explained(unit, kmeans_prototypes(unit, count, 0, restarts=4)),
        ),
        tuple(Arm(name, run) for name, run in kmeans_ways(unit, count).items()),
        quality=QUALITY,
    )
    yield _elimination(unit)


def _elimination(unit: np.ndarray) -> Comparison:
    """Drop candidates one by one, beside a loop that looks at all filters again each time."""
    chosen = np.random.default_rng(0).choice(len(unit), CANDIDATES, replace=False)
    gains = ((unit @ unit[chosen].T) ** 2).astype(np.float64)

    def loop() -> float:
        alive = list(range(CANDIDATES))
        while len(alive) > KEYS:
            left = [gains[:, [j for j in alive if j != i]].max(1).sum() for i in alive]
            alive.pop(int(np.argmax(left)))
        return float(gains[:, alive].max(1).mean())

    def ours() -> float:
        return float(gains[:, eliminate(gains).survivors(KEYS)].max(1).mean())

    return Comparison(
        "discovery",
        f"{CANDIDATES} candidates dropped to {KEYS}, {len(unit):,} filters",
        "elimination",
        Arm("eliminate", ours),
        (Arm("a Python loop with NumPy", loop),),
        quality=QUALITY,
    )

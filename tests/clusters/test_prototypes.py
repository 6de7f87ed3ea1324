from __future__ import annotations

import numpy as np
import pytest

from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes, nearest_prototype
from keyfilters.scalespace import centred_unit


def planted(
    keys: int = 5, each: int = 60, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    centres = centred_unit(generator.normal(size=(keys, 25)))
    truth = np.repeat(np.arange(keys), each)
    filters = centres[truth] + noise / 5 * generator.normal(size=(len(truth), 25))
    return centred_unit(filters), centres, truth


def test_kmeans_finds_planted_centres() -> None:
    unit, centres, truth = planted()
    found = kmeans_prototypes(unit, 5, seed=0, restarts=8)
    assert np.abs(found @ centres.T).max(0).min() > 0.99
    index, _ = nearest_prototype(unit, found)
    assert len(set(zip(index.tolist(), truth.tolist(), strict=True))) == 5


def test_kmeans_with_more_centres_than_distinct_filters() -> None:
    unit = np.repeat(planted(keys=3, each=1)[0], 20, axis=0)
    found = kmeans_prototypes(unit, 16, seed=0)
    assert np.isfinite(found).all()
    assert nearest_prototype(unit, found)[1].max() < 1e-5


@pytest.mark.parametrize("either_sign", [False, True])
def test_nearest_equals_a_slow_loop(either_sign: bool) -> None:
    generator = np.random.default_rng(0)
    unit, prototypes = (centred_unit(generator.normal(size=(n, 9))) for n in (50, 7))
    index, far = nearest_prototype(unit, prototypes, either_sign=either_sign, chunk=30)
    for f, i, d in zip(unit, index, far, strict=True):
        similar = [float(f @ p) for p in prototypes]
        similar = [abs(s) for s in similar] if either_sign else similar
        assert i == int(np.argmax(similar))
        assert d == pytest.approx(1 - max(similar), abs=1e-6)


def test_greedy_choice_takes_what_covers_most() -> None:
    unit, centres, truth = planted(keys=3, each=10)
    unit = unit[(truth == 2) | ((truth == 1) & (np.arange(30) % 2 == 0)) | (np.arange(30) < 2)]
    chosen = PrototypeSet(centres).most_covering(unit, (1, 2, 9), 0.2, seed=0)
    assert list(chosen) == [1, 2]
    np.testing.assert_array_equal(chosen[2].prototypes, centres[[2, 1]])
    flipped = PrototypeSet(-centres, either_sign=True).most_covering(unit, (1,), 0.2, seed=0)
    np.testing.assert_array_equal(flipped[1].prototypes, -centres[[2]])

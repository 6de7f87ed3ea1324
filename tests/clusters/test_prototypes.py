from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.cluster import KMeans, _kmeans

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


@pytest.mark.skipif(
    "stable_cumsum" in inspect.getsource(_kmeans),
    reason="this scikit-learn sums the distances in float64, and may draw another filter",
)
@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_starts_where_that_of_scikit_learn_does(count: int, seed: int) -> None:
    unit = planted(keys=40, each=30, noise=1.0)[0].astype(np.float32)
    expected = KMeans(count, n_init=2, random_state=seed).fit(unit).cluster_centers_
    shown = np.linalg.norm(expected, axis=1) > 1e-6
    found = kmeans_prototypes(unit, count, seed, restarts=2)
    np.testing.assert_allclose(found, centred_unit(expected[shown]), atol=1e-5)


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


def test_greedy_choice_equals_a_slow_loop() -> None:
    generator = np.random.default_rng(1)
    unit, prototypes = (centred_unit(generator.normal(size=(n, 9))) for n in (300, 40))
    covers = np.abs(unit @ prototypes.T) > 0.6
    left, order = np.ones(300, bool), list[int]()
    while len(order) < 25:
        gain = [-1 if k in order else int((covers[:, k] & left).sum()) for k in range(40)]
        order.append(int(np.argmax(gain)))
        left &= ~covers[:, order[-1]]
    chosen = PrototypeSet(prototypes, either_sign=True).most_covering(unit, (3, 25), 0.4, seed=0)
    np.testing.assert_array_equal(chosen[3].prototypes, prototypes[order[:3]])
    np.testing.assert_array_equal(chosen[25].prototypes, prototypes[order])


def test_greedy_choice_takes_what_covers_most() -> None:
    unit, centres, truth = planted(keys=3, each=10)
    unit = unit[(truth == 2) | ((truth == 1) & (np.arange(30) % 2 == 0)) | (np.arange(30) < 2)]
    chosen = PrototypeSet(centres).most_covering(unit, (1, 2, 9), 0.2, seed=0)
    assert list(chosen) == [1, 2]
    np.testing.assert_array_equal(chosen[2].prototypes, centres[[2, 1]])
    flipped = PrototypeSet(-centres, either_sign=True).most_covering(unit, (1,), 0.2, seed=0)
    np.testing.assert_array_equal(flipped[1].prototypes, -centres[[2]])

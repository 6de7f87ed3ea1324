from __future__ import annotations

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.clusters.keys import learn_keys, learn_keys_by_layer
from keyfilters.keyset import KeySet


def planted(count: int, seed: int = 0, noise: float = 0.1) -> tuple[KeySet, np.ndarray]:
    """Filters a · x + b of random keys, of either sign, with noise at 20 dB."""
    generator = np.random.default_rng(seed)
    keys = KeySet.random(count, size=5, seed=seed)
    index = generator.integers(count, size=600)
    a = generator.choice([-1, 1], 600) * generator.uniform(0.5, 2, 600)
    filters = a[:, None, None] * keys.filters[index] + generator.normal(size=(600, 1, 1))
    level = noise * np.abs(a)[:, None, None] / 5
    return keys, filters + level * generator.normal(size=filters.shape)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_keys_are_found_up_to_sign(seed: int) -> None:
    keys, filters = planted(8, seed)
    found = learn_keys(filters, 8, seed=seed)
    cosine = np.abs(np.einsum("iyx,jyx->ij", keys.filters, found.filters))
    assert (cosine.max(1) > 0.99).all() and len(set(cosine.argmax(1))) == 8


def test_lines_leave_less_over_than_kmeans_and_never_more_with_more_keys() -> None:
    filters = np.random.default_rng(0).normal(size=(400, 3, 3))
    left = {}
    for method in ("lines", "kmeans"):
        for count in (2, 6, 18):
            residual = learn_keys(filters, count, method=method).assign(filters).residual
            left[method, count] = float((residual**2).sum())
    assert all(left["lines", k] < left["kmeans", k] for k in (2, 6, 18))
    assert left["lines", 2] > left["lines", 6] > left["lines", 18]


def test_the_same_seed_gives_the_same_bits() -> None:
    _, filters = planted(4)
    first, again, other = (learn_keys(filters, 6, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.filters, again.filters)
    assert not np.array_equal(first.filters, other.filters)


def test_keys_of_layers_and_of_depths() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 20, 3, 3)).astype(np.float32)
    weights[0, 3:] = 0.5  # only three filters with a shape
    layers = [Layer("net", f"layer{i}", w, (1, 1), (1, 1), i / 4) for i, w in enumerate(weights)]
    layers.append(Layer("net", "flat", np.ones((4, 1, 3), np.float32), None, None, 1.0))
    sets = learn_keys_by_layer(kf.FilterBank(layers), 8)
    assert {name: len(keys) for name, keys in sets.items()} == {
        "layer0": 3,
        **{f"layer{i}": 8 for i in range(1, 5)},
    }
    halves = learn_keys_by_layer(kf.FilterBank(layers), 8, groups=2)
    assert halves["layer0"] is halves["layer1"] and halves["layer2"] is halves["layer4"]
    assert halves["layer1"] is not halves["layer2"]


def test_what_cannot_be_learned_is_refused() -> None:
    filters = np.ones((4, 3, 3))
    filters[0, 0, 0] = 2
    with pytest.raises(kf.KeyFiltersError, match="cannot learn 2 keys from 1 filters"):
        learn_keys(filters, 2)
    with pytest.raises(kf.KeyFiltersError, match="4 are dead"):
        learn_keys(1e-5 * filters, 1)
    with pytest.raises(kf.KeyFiltersError, match="'lines' or 'kmeans', got 'pca'"):
        learn_keys(filters, 1, method="pca")
    with pytest.raises(kf.KeyFiltersError, match="no filters with a shape"):
        learn_keys_by_layer(kf.FilterBank([]), 4)
    one, two = (Layer(name, "conv", filters, None, None, 0.0) for name in ("one", "two"))
    with pytest.raises(kf.KeyFiltersError, match="one network, got one, two"):
        learn_keys_by_layer(kf.FilterBank([one, two]), 1)
    with pytest.raises(kf.KeyFiltersError, match="groups must be at least 1"):
        learn_keys_by_layer(kf.FilterBank([one]), 1, groups=0)

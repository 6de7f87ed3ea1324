from __future__ import annotations

import numpy as np
import pytest

from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.principal_curve import (
    CodeSpace,
    PrincipalCurve,
    distinct_prototypes,
    fit_together,
)
from keyfilters.scalespace import centred_unit


def ring(count: int = 600, seed: int = 0) -> np.ndarray:
    """Filters on a closed curve: one number says everything about them."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
    waves = np.outer(angle, [1, 2]) - np.arange(9)[:, None, None] * np.pi * 2 / 9
    return centred_unit(np.cos(waves[..., 0]).T + 0.5 * np.cos(waves[..., 1]).T)


def test_a_curve_is_represented_by_one_number() -> None:
    unit = ring()
    auto = PrincipalCurve(1, seed=0).fit(unit)
    far = auto.as_prototypes().dissimilarity(unit)
    assert np.mean(far) < 0.01 and np.quantile(far, 0.99) < 0.05
    noise = centred_unit(np.random.default_rng(0).normal(size=(500, 9)))
    held_out = auto.as_prototypes().dissimilarity(ring(seed=1))
    assert np.mean(held_out) < 0.01
    assert np.mean(auto.as_prototypes().dissimilarity(noise)) > 0.3


def test_decoded_filters_are_centred_unit_and_neighbours_alike() -> None:
    auto = PrincipalCurve(1, seed=0).fit(ring())
    np.testing.assert_allclose(auto.decoded_.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(auto.decoded_, axis=1), 1, atol=1e-5)
    assert (auto.decoded_[1:] * auto.decoded_[:-1]).sum(1).min() > 0.5
    assert ((auto.codes_ > 0) & (auto.codes_ < 1)).all()
    assert distinct_prototypes(auto.decoded_) > 2


def test_same_seed_same_result_and_the_global_generator_is_left_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b = (PrincipalCurve(2, seed=1, steps=60).fit(ring(200)) for _ in range(2))
    FeedForwardAutoencoder(1, seed=0, epochs=1).fit(ring(200))
    np.testing.assert_array_equal(a.decoded_, b.decoded_)
    assert torch.equal(torch.rand(3), expected)


def test_feed_forward_autoencoder_learns_but_stops_short_of_exact_codes() -> None:
    unit = ring(1000)
    network = FeedForwardAutoencoder(1, seed=0, epochs=40).fit(unit)
    exact = PrincipalCurve(1, seed=0).fit(unit).as_prototypes()
    assert np.mean(network.dissimilarity(unit)) < 0.2
    assert np.mean(exact.dissimilarity(unit)) < np.mean(network.dissimilarity(unit))


def test_fitting_together_is_fitting_each_alone() -> None:
    units = [ring(300), ring(200, seed=1)]
    together = [PrincipalCurve(1, seed, steps=80) for seed in (0, 3)]
    fit_together(together, units)
    for auto, unit, seed in zip(together, units, (0, 3), strict=True):
        alone = PrincipalCurve(1, seed, steps=80).fit(unit)
        np.testing.assert_allclose(auto.decoded_, alone.decoded_, atol=1e-3)


def test_code_space() -> None:
    space = CodeSpace(2, resolution=4, bandwidth=2)
    assert space.grid().shape == (16, 2)
    assert space.features(space.grid()).shape == (16, 9)
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        CodeSpace.default(3)


@pytest.mark.parametrize(("dimensions", "count"), [(1, 3), (2, 5)])
def test_as_few_filters_as_places_are_met_by_their_own_codes(dimensions: int, count: int) -> None:
    unit = ring(count)
    curve = PrincipalCurve(dimensions, steps=300).fit(unit)
    assert curve.as_prototypes().dissimilarity(unit).max() < 0.05

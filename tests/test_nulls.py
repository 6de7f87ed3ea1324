"""Null filters keep what their kind promises, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.nulls import NULLS, null_bank, null_units, null_units_by_layer
from keyfilters.scalespace import centred_unit, why_unusable

SIZES = [(3, 3), (5, 5), (7, 7), (1, 7), (4, 4)]


def smooth(size: tuple[int, int], count: int = 1500, seed: int = 0) -> np.ndarray:
    """Centred unit filters with a mean and a covariance that are far from white."""
    generator = np.random.default_rng(seed)
    taps = size[0] * size[1]
    mixing = generator.normal(size=(taps, taps)) * np.geomspace(1, 0.05, taps)
    return centred_unit(generator.normal(size=(count, taps)) @ mixing.T + mixing[:, 0] / 2)


@pytest.mark.parametrize("size", SIZES)
def test_covariance_null_has_the_mean_and_the_covariance_of_the_unit_forms(
    size: tuple[int, int],
) -> None:
    unit = smooth(size)
    null = null_units(unit, size, "covariance", 1, 20_000)
    wanted, found = (np.cov(x.T.astype(float)) for x in (unit, null))
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
    assert np.linalg.norm(null.mean(0) - unit.mean(0)) < 0.03


def test_scaling_plain_gaussian_filters_would_flatten_their_covariance() -> None:
    unit = smooth((5, 5))
    wanted = np.cov(unit.T.astype(float))
    drawn = np.random.default_rng(0).multivariate_normal(unit.mean(0), wanted, 20_000)
    flat = np.cov(centred_unit(drawn).T.astype(float))
    assert np.linalg.norm(flat - wanted) > 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("size", SIZES)
def test_phase_null_keeps_every_power_spectrum_and_moves_the_phases(size: tuple[int, int]) -> None:
    unit = smooth(size, 200)
    null = null_units(unit, size, "phase", 0)
    power = [np.abs(np.fft.fft2(x.reshape(-1, *size))) for x in (unit, null)]
    np.testing.assert_allclose(*power, atol=1e-5)
    assert np.abs((unit * null).sum(1)).mean() < 0.8


def test_tap_permuted_null_keeps_every_value_and_white_null_nothing() -> None:
    unit = smooth((5, 5), 300)
    np.testing.assert_array_equal(
        np.sort(null_units(unit, (5, 5), "tap-permuted", 0)), np.sort(unit)
    )
    white = null_units(unit, (5, 5), "white", 0, 20_000)
    values = np.linalg.eigvalsh(np.cov(white.T.astype(float)))[1:]
    assert values.max() / values.min() < 1.3


@pytest.mark.parametrize("kind", NULLS)
def test_null_bank_keeps_layers_norms_means_and_what_has_no_shape(kind: str) -> None:
    generator = np.random.default_rng(0)
    layers = []
    for i, (k_y, k_x) in enumerate([(3, 3), (5, 5), (5, 5), (1, 7)]):
        weight = generator.normal(0.3, 0.5, size=(90, k_y, k_x)).astype(np.float32)
        weight[0], weight[1], weight[2, 0, 0] = 0, 2, np.nan
        layers.append(Layer("net", f"layer {i}", weight, (2, 1), None, i / 4, note="a note"))
    bank = kf.FilterBank(layers, [("stem", "dense")])
    null = null_bank(bank, kind, 3)
    assert null.skipped == bank.skipped and null.sizes == bank.sizes
    for before, after in zip(bank.layers, null.layers, strict=True):
        assert (before.name, before.stride, before.note) == (after.name, after.stride, after.note)
        flaw = why_unusable(before.weight)
        np.testing.assert_array_equal(why_unusable(after.weight), flaw)
        usable = flaw == ""
        np.testing.assert_array_equal(before.weight[~usable], after.weight[~usable])
        pair = [x.weight[usable].reshape(usable.sum(), -1) for x in (before, after)]
        np.testing.assert_allclose(*(x.mean(1) for x in pair), atol=1e-5)
        np.testing.assert_allclose(*(np.linalg.norm(x, axis=1) for x in pair), rtol=1e-4)
        assert not np.allclose(*pair, atol=0.05)


def test_seeds_kinds_and_sizes_have_streams_of_their_own() -> None:
    unit = smooth((5, 5), 100)
    first, again, other = (null_units(unit, (5, 5), "white", seed) for seed in (0, 0, 1000))
    np.testing.assert_array_equal(first, again)
    assert np.abs((first * other).sum(1)).max() < 0.99
    assert len(null_units(unit, (5, 5), "phase", 0, 250)) == 250
    assert len(null_units(unit, (5, 5), "tap-permuted", 0, 20)) == 20


def test_unknown_null_is_refused() -> None:
    with pytest.raises(kf.KeyFiltersError, match="no null is called 'gaussian'; there are: white"):
        null_bank(kf.FilterBank([]), "gaussian")
    assert len(null_bank(kf.FilterBank([]), "phase")) == 0


@pytest.mark.parametrize(("size", "count"), [((3, 3), 900), ((5, 5), 6), ((7, 7), 12)])
def test_correcting_the_covariance_null_never_leads_away(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int
) -> None:
    # Filters in one half-space, and fewer than taps: their moments cannot be met in full.
    unit = np.abs(smooth(size, count, seed=4))
    unit = centred_unit(unit)

    def error() -> float:
        drawn = null_units(unit, size, "covariance", 0, 4096)
        return float(np.linalg.norm(np.cov(drawn.T, ddof=0) - np.cov(unit.T, ddof=0)))

    matched = error()
    monkeypatch.setattr("keyfilters.nulls.MATCHING_STEPS", 1)  # as first drawn
    assert matched <= error()


@pytest.mark.parametrize("kind", NULLS)
def test_null_filters_of_integers_keep_the_norms(kind: str) -> None:
    weight = np.sign(np.random.default_rng(0).normal(size=(200, 5, 5))).astype(np.int8)
    found = null_bank(kf.FilterBank([Layer("net", "a", weight, None, None, 0.0)]), kind).layers[0]
    norms = [
        np.linalg.norm((x - x.mean((1, 2), keepdims=True)).reshape(200, -1), axis=1)
        for x in (weight.astype(np.float64), found.weight.astype(np.float64))
    ]
    np.testing.assert_allclose(*norms, rtol=1e-2)


def test_layers_have_covariances_of_their_own_where_they_are_large() -> None:
    """The small ones share one."""
    rough = np.random.default_rng(0).normal(size=(600, 25))
    layers = [
        Layer("net", name, x.reshape(-1, 5, 5).astype(np.float32), None, None, 0.0)
        for name, x in (("a", rough), ("b", smooth((5, 5), 600)), ("c", smooth((5, 5), 20)))
    ]
    bank = kf.FilterBank(layers)
    pooled, own = (null_bank(bank, "covariance", 1, by_layer=x) for x in (False, True))

    def spectrum(layer: Layer) -> float:
        """Share of the largest eigenvalue of the covariance of unit forms."""
        unit = centred_unit(layer.weight.reshape(len(layer.weight), -1))
        values = np.linalg.eigvalsh(unit.T @ unit)
        return float(values[-1] / values.sum())

    for i in (0, 1):
        assert spectrum(own.layers[i]) == pytest.approx(spectrum(bank.layers[i]), abs=0.02)
        assert abs(spectrum(pooled.layers[i]) - spectrum(bank.layers[i])) > 0.04
    assert own.layers[2].weight.shape == (20, 5, 5)

    units = [centred_unit(layer.weight.reshape(len(layer.weight), -1)) for layer in layers]
    numbers = np.repeat(np.arange(3), [600, 600, 20])
    drawn = null_units_by_layer(np.concatenate(units), numbers, (5, 5), "covariance", 1)
    shapes = [centred_unit(layer.weight.reshape(len(layer.weight), -1)) for layer in own.layers]
    np.testing.assert_allclose(drawn, np.concatenate(shapes), atol=1e-5)

"""p-values: against the right null, and finer than the number of null draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.nulls import null_units
from keyfilters.receptive_fields.families import family
from keyfilters.receptive_fields.significance import choose_null, significance
from tests.test_nulls import smooth


def test_five_perfect_edges_among_5000_noise_filters_are_found() -> None:
    noise = np.random.default_rng(0).normal(size=(5000, 5, 5))
    edge = family("x:d y:0").render(torch.tensor([[0.8, 1.1]]), (5, 5)).numpy()
    found = kf.match(np.concatenate([noise, np.repeat(edge, 5, 0)]), families="separable")
    assert (found["q"][-5:] < 0.05).all() and (found["p_from"][-5:] == "tail").all()
    assert (found["q"][:5000] < 0.05).sum() <= 2
    assert (found["null"] == "covariance").all()


def test_smooth_noise_is_not_significant_against_its_own_covariance() -> None:
    unit = smooth((5, 5), 600)
    fresh = null_units(unit, (5, 5), "covariance", 7).reshape(-1, 5, 5)
    own = kf.match(fresh, families="separable")
    assert (own["q"] < 0.05).mean() < 0.01
    assert abs((own["p"] < 0.05).mean() - 0.05) < 0.04


def test_the_null_is_chosen_and_told() -> None:
    few = np.random.default_rng(0).normal(size=(20, 5, 5))
    weight = smooth((5, 5), 200).reshape(-1, 5, 5)
    bank = kf.FilterBank([Layer("net", "a", weight, None, None, 0.0)])
    options = {"families": "separable", "null_draws": 50}
    assert (kf.match(few, **options)["null"] == "white").all()
    found = kf.match(few, bank=bank, **options)
    assert (found["null"] == "covariance").all() and (found["p"] >= 1 / 51).all()
    assert (kf.match(few, null="phase", **options)["null"] == "phase").all()
    assert "p" not in kf.match(few, null=None, families="separable")
    with pytest.raises(kf.KeyFiltersError, match="null is 'gaussian'; expected 'auto', None or"):
        choose_null("gaussian", 100, 25)


def test_p_values_are_uniform_under_the_null_far_into_the_tail() -> None:
    generator = np.random.default_rng(0)
    found = significance(generator.beta(4, 12, 200_000), generator.beta(4, 12, 2000), "white")
    for level in (0.3, 0.05, 5e-3):
        assert (found["p"] < level).mean() == pytest.approx(level, rel=0.3)
    assert (found["p"] < 1e-4).mean() < 4e-4
    assert (found["p"] > 0).all()


def test_few_draws_give_a_floor_and_missing_filters_stay_missing() -> None:
    found = significance(np.array([0.99, np.nan, 0.1]), np.linspace(0, 0.5, 99), "white")
    assert found["p"][0] == pytest.approx(0.01) and found["p_from"].tolist()[0] == "floor"
    assert np.isnan(found["p"][1]) and found["p_from"][1] == ""
    assert found["p_from"][2] == "count"


def test_filters_that_equal_their_null_to_rounding_are_reached() -> None:
    """The null of one repeated filter is that filter; rounding decides nothing."""
    blur = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    found = kf.match(np.repeat(blur[None], 200, 0), families="separable")
    assert (found["null"] == "covariance").all() and (found["p"] == 1).all()


def test_noise_of_unlike_layers_is_not_significant_against_noise_of_each() -> None:
    """It is against one covariance for all, which is not what it is drawn from."""
    generator = np.random.default_rng(0)
    blurred = gaussian_filter(generator.normal(size=(500, 13, 13)), (0, 1.5, 1.5))[:, 4:9, 4:9]
    layers = [
        Layer("net", name, x.astype(np.float32), None, None, 0.0)
        for name, x in (("a", blurred), ("b", generator.normal(size=(1500, 5, 5))))
    ]
    bank = kf.FilterBank(layers)
    filters = bank.stack(5)[0]
    pooled = kf.match(filters, families="separable")
    given = kf.null_bank(bank, "covariance", 1, by_layer=True)
    own = kf.match(filters, families="separable", null=given)
    assert (pooled["q"] < 0.05).mean() > 0.05 and (own["q"] < 0.05).mean() < 0.01
    assert (own["null"] == "given").all()

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.discovery.discover import discover_keys
from keyfilters.discovery.universality import matched_cosine, universality
from keyfilters.keyset import KeySet
from tests.discovery.test_discover import planted


def test_keys_that_two_models_share_explain_both() -> None:
    _, one = planted(5, 0)
    _, same = planted(5, 0, n=400)
    _, other = planted(5, 1)
    matrix = universality({"one": one, "same": same, "other": other}, 5)
    assert list(matrix.columns) == ["one", "same", "other"]
    assert matrix.loc["one", "same"] > 0.95 and matrix.loc["same", "one"] > 0.95
    assert matrix.loc["one", "other"] < 0.6 < 0.95 < matrix.loc["other", "other"]
    assert matrix.loc["all others", "same"] < matrix.loc["one", "same"]
    null = universality(
        {name: kf.null_bank(bank, "covariance") for name, bank in (("one", one), ("same", same))}, 5
    )
    assert (null.loc["one"] < matrix.loc["one", ["one", "same"]] - 0.1).all()
    assert "published B" in matrix.index


def test_balance_lets_small_models_count() -> None:
    _, large = planted(5, 0, count=4, n=3000)
    keys, small = planted(5, 1, count=4, n=100)
    both = large + small
    plain = discover_keys(both, keys=4, kinds=["lines"], seed=0)
    fair = discover_keys(both, keys=4, kinds=["lines"], balance=True, seed=0)

    def served(found: KeySet) -> int:
        cosine = np.abs(np.einsum("iyx,jyx->ij", keys.filters, found.filters))
        return int((cosine.max(1) > 0.98).sum())

    assert served(plain.keys) == 0 < served(fair.keys)
    assert fair.models["share"].sum() == pytest.approx(1, abs=1e-5)


def test_cosine_of_sets_pairs_each_key_once() -> None:
    keys = KeySet.random(6, size=7, seed=3)
    flipped = KeySet.from_filters(-keys.filters[::-1])
    assert matched_cosine(keys, flipped) == pytest.approx(1)
    same = KeySet.from_filters(keys.filters[[0, 1]])
    apart = KeySet.from_filters(keys.filters[[0, 2]])
    cosine = abs(float((keys.filters[1] * keys.filters[2]).sum()))
    assert matched_cosine(same, apart) == pytest.approx((1 + cosine) / 2)


def test_models_with_too_few_filters_have_no_row() -> None:
    _, one = planted(5, 0, count=4, n=200)
    _, other = planted(5, 1, count=4, n=200)
    _, small = planted(7, 0, n=200)
    few = kf.FilterBank([replace(one.layers[0], weight=one.layers[0].weight[:3])])
    banks = {"one": one, "small": small, "few": few, "other": other}
    matrix = universality(banks, 5, keys=4)
    assert list(matrix.columns) == ["one", "other"]
    assert set(matrix.index) == {"one", "other", "all others", "lines of the model itself"}
    with pytest.raises(kf.KeyFiltersError, match="got 1"):
        universality({"one": one, "small": small, "few": few}, 5)


def test_too_few_models() -> None:
    _, bank = planted(5, 0)
    with pytest.raises(kf.KeyFiltersError, match="at least two models"):
        universality({"one": bank}, 5)

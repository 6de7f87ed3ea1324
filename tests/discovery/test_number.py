"""The number of keys depends on the filters, not on candidates, and noise has none."""

from __future__ import annotations

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.claims import halves
from keyfilters.discovery.discover import discover_keys
from keyfilters.discovery.number import number_of_keys
from keyfilters.nulls import null_units
from keyfilters.scalespace import centred_unit
from tests.discovery.test_discover import planted
from tests.test_nulls import smooth


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("kind", ["white", "covariance"])
def test_noise_has_no_number_of_keys(size: int, kind: str) -> None:
    unit = null_units(smooth((size, size), 900), (size, size), kind, 3)
    found = number_of_keys(unit, size, np.arange(len(unit)) % 2 == 0, seed=1)
    assert found.number is None and found.words.startswith("No number of keys stands out")
    assert (np.abs(found.curve["gap"]) < 0.05).all()


def test_discovery_in_noise_keeps_the_published_number_and_says_so() -> None:
    filters = smooth((5, 5), 400).reshape(-1, 5, 5)
    bank = kf.FilterBank([Layer("net", "a", filters, None, None, 0.0)])
    found = discover_keys(bank, kinds=["lines"], count=20, nulls=("covariance",))
    assert len(found.keys) == 8 and found.number.number is None
    assert found.value == pytest.approx(found.nulls["covariance"], abs=0.04)


def test_candidates_do_not_change_the_number() -> None:
    _, bank = planted(5, 0, n=800)
    numbers = {
        count: discover_keys(bank, kinds=["lines"], count=count, rounds=1, nulls=()).number.number
        for count in (20, 50, 100)
    }
    assert numbers == {20: 8, 50: 8, 100: 8}


def test_number_of_lite0_exceeds_its_null(lite0: kf.FilterBank) -> None:
    filters, table = lite0.stack(5)
    usable = (table["flaw"] == "").to_numpy()
    found = number_of_keys(centred_unit(filters[usable]), 5, halves(table[usable]))
    assert found.number is not None and 8 <= found.number <= 32
    row = found.curve.set_index("keys").loc[found.number]
    assert row["held_out"] > row["covariance"] + 3 * row["se"]

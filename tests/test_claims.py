"""A claim holds against the strictest null, and seldom where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keyfilters.claims import FILTERS, LEVEL, Claim, claims_table, halves
from keyfilters.nulls import NULLS


def scores(share: float, seeds: int = 1, n: int = 2000, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, n)) < share).astype(float)


def test_the_strictest_null_is_quoted_and_decides() -> None:
    data = {FILTERS: scores(0.7)} | {k: scores(0.1, seed=i + 1) for i, k in enumerate(NULLS)}
    assert Claim.measure("x", data).p < 1e-6
    data["phase"] = scores(0.7, seed=9)
    claim = Claim.measure("x", data)
    assert claim.strictest == "phase" and claim.p > 0.01
    assert claims_table([claim])["chance"][0] == claim.nulls["phase"]
    assert np.isnan(claim.held_out) and np.isnan(claim.sd)


def test_what_does_not_hold_on_the_other_half_is_not_claimed() -> None:
    data = {FILTERS: scores(0.9), "covariance": scores(0.5, seed=1)}
    held_out = {FILTERS: scores(0.5, seed=2)[0], "covariance": scores(0.5, seed=3)[0]}
    claim = Claim.measure("x", data, held_out)
    assert claim.value > 0.85 and claim.held_out < 0.55 and claim.p > 0.05


def test_spread_over_fits_counts() -> None:
    steady = {FILTERS: scores(0.53), "white": scores(0.5, seed=1)}
    spread = np.stack([scores(share, seed=i)[0] for i, share in enumerate((0.4, 0.53, 0.66))])
    assert Claim.measure("x", steady).p < LEVEL < Claim.measure("x", steady | {FILTERS: spread}).p


def test_false_claims_keep_to_the_stated_rate() -> None:
    wrong = 0
    for i in range(400):
        data = {k: scores(0.3, n=300, seed=7000 + 10 * i + j)
                for j, k in enumerate((FILTERS, *NULLS))}  # fmt: skip
        wrong += Claim.measure("x", data).p < LEVEL
    assert wrong <= 0.05 * 400


@pytest.mark.parametrize(
    ("models", "layers", "expected"),
    [
        ("aabbbc", "uvuvvu", [False, False, True, True, True, True]),
        ("aaaaaa", "uuvvww", [True, True, False, False, True, True]),
        ("aaaaaa", "uuuuuu", [True, False, True, False, True, False]),
    ],
)
def test_halves_are_of_models_then_of_layers(
    models: str, layers: str, expected: list[bool]
) -> None:
    table = pd.DataFrame({"model": list(models), "layer": list(layers)})
    assert halves(table).tolist() == expected


@pytest.mark.parametrize(
    "counts",
    [
        {"a0": 200, "a1": 200, "a2": 200, "a3": 200, "b0": 8},
        {"a0": 400, "a1": 8, "a2": 390},
        {"a0": 1000, "b0": 3},
    ],
)
def test_no_half_has_less_than_a_quarter(counts: dict[str, int]) -> None:
    """A letter is a model, a number a layer."""
    names = [name for name, count in counts.items() for _ in range(count)]
    table = pd.DataFrame({"model": [x[0] for x in names], "layer": [x[1] for x in names]})
    half = halves(table)
    assert 0.25 <= half.mean() <= 0.75
    whole = table.assign(half=half).groupby(["model", "layer"])["half"].nunique() == 1
    assert whole.all() or max(counts.values()) > 0.75 * len(names)

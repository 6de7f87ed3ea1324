from __future__ import annotations

from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import compare, epochs_to_reach, sentence, summarise
from keyfilters.experiments.statistics import holm, match_sentence

VALUES = st.integers(-1000, 1000).map(lambda i: i / 8)  # no differences by rounding only


def table_of(values: dict[str, list[float]]) -> pd.DataFrame:
    """Table of a grid from condition → value of seed 0, 1, ..."""
    rows = [(c, seed, x) for c, column in values.items() for seed, x in enumerate(column)]
    return pd.DataFrame(rows, columns=["condition", "seed", "top1"])


def slow_holm(p: list[float]) -> list[float]:
    """Holm's definition, term by term."""
    m = len(p)
    ordered = sorted(p)
    stepped = [max(min(1.0, (m - j) * ordered[j]) for j in range(i + 1)) for i in range(m)]
    return [stepped[ordered.index(x)] for x in p]


@given(hnp.arrays(float, st.tuples(st.integers(2, 9), st.just(2)), elements=VALUES))
def test_agrees_with_scipy(values: np.ndarray) -> None:
    a, b = values.T
    table = table_of({"A": a.tolist(), "B": b.tolist()})
    [row] = compare(table, "top1", reference="B").to_dict("records")
    d, n = a - b, len(values)
    assert row["seeds"] == n and row["missing"] == 0
    assert row["difference"] == pytest.approx(d.mean(), abs=1e-12)
    if np.ptp(d) == 0:
        assert row["sd"] == 0
        assert all(isnan(row[name]) for name in ("p", "p_holm", "low", "high", "effect"))
    else:
        expected = stats.ttest_rel(a, b)
        interval = expected.confidence_interval(0.95)
        assert row["p"] == row["p_holm"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert (row["low"], row["high"]) == pytest.approx(tuple(interval), rel=1e-9, abs=1e-12)
        if n > 2:
            approximate = 1 - 3 / (4 * (n - 1) - 1)
            assert row["effect"] / (d.mean() / d.std(ddof=1) or 1) == pytest.approx(
                approximate if d.mean() else 0, abs=0.035
            )
    mean = summarise(table, "top1").set_index("condition").loc["A"]
    if np.ptp(a) > 0:
        interval = stats.t.interval(0.95, n - 1, a.mean(), stats.sem(a))
        assert (mean["low"], mean["high"]) == pytest.approx(interval, rel=1e-9, abs=1e-9)


def test_hedges_factor_removes_the_bias() -> None:
    generator = np.random.default_rng(0)
    d = generator.normal(0.8, 1.0, (20_000, 5))
    from keyfilters.experiments.statistics import _hedges

    effects = d.mean(1) / d.std(1, ddof=1)
    assert effects.mean() > 0.95, "uncorrected, d is a quarter too large with five seeds"
    assert effects.mean() * _hedges(4) == pytest.approx(0.8, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True))
def test_holm_agrees_with_its_definition(p: list[float]) -> None:
    assert holm(p) == pytest.approx(slow_holm(p))
    with_gap = holm([*p[:1], nan, *p[1:]])
    assert isnan(with_gap[1]) and np.delete(with_gap, 1) == pytest.approx(slow_holm(p))


def test_false_claims_are_rare_and_planted_effects_found() -> None:
    generator = np.random.default_rng(0)
    tables, claims, found = 600, 0, 0
    for _ in range(tables):
        seeds = generator.normal(0, 2, 5)  # what the conditions of one seed share
        columns = {c: (seeds + generator.normal(0, 0.3, 5)).tolist() for c in "ABCD"}
        columns["planted"] = (seeds + 2 + generator.normal(0, 0.3, 5)).tolist()
        rows = compare(table_of(columns), "top1", reference="A").to_dict("records")
        words = [sentence(row) for row in rows]
        claims += any("beats" in text for text in words[:3])
        found += words[3].startswith("planted beats A by")
    # Holm bounds the rate of tables with any false claim by 0.05; 0.018 is two standard errors.
    assert claims / tables <= 0.05 + 0.018
    assert found / tables > 0.95


def test_pairs_find_what_unpaired_means_hide() -> None:
    seeds = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    noise = np.array([0.1, -0.1, 0.0, 0.1, -0.1])
    table = table_of({"A": (seeds + 1 + noise).tolist(), "B": seeds.tolist()})
    means = summarise(table, "top1")
    assert means["low"][0] < means["high"][1], "the intervals of the conditions overlap"
    [row] = compare(table, "top1", pairs=[("A", "B")]).to_dict("records")
    assert row["p_holm"] < 0.001 and row["low"] > 0.8


def test_missing_seeds_are_left_out_and_counted() -> None:
    table = table_of({"A": [5.0, 6.0, 7.0, nan], "B": [4.0, 4.5, 6.5, 5.0, 5.0]})
    table["status"] = "done"
    table.loc[0, "status"] = "failed"
    [row] = compare(table, "top1", reference="B").to_dict("records")
    assert row["seeds"] == 2 and row["missing"] == 3
    assert row["difference"] == pytest.approx(1.0)
    assert sentence(row) == (
        "A against B: too few seeds to say (2 seeds in common, at least 3 are needed). "
        "3 seeds that only one of them has are left out."
    )
    means = summarise(table, "top1")
    assert means["seeds"].tolist() == [2, 5] and means["missing"].tolist() == [3, 0]
    one = summarise(table_of({"A": [3.0]}), "top1").iloc[0]
    assert one["mean"] == 3.0 and isnan(one["low"]) and isnan(one["sd"])
    none = compare(table_of({"A": [nan], "B": [1.0]}), "top1", reference="B").iloc[0]
    assert none["seeds"] == 0 and isnan(none["difference"])
    assert "0 seeds in common" in sentence(none)


ROW = {"condition": "A", "reference": "B", "seeds": 5, "missing": 0, "sd": 0.5, "effect": 1.0}


@pytest.mark.parametrize(
    ("numbers", "options", "expected"),
    [
        (
            {"difference": -1.3, "low": -2.0, "high": -0.6, "p_holm": 0.0004},
            {},
            "B beats A by 1.3 points (95 % interval 0.6 to 2.0, 5 seeds, p < 0.001 after Holm).",
        ),
        (
            {"difference": -1.3, "low": -2.0, "high": -0.6, "p_holm": 0.04, "missing": 1},
            {"higher_is_better": False, "unit": "epochs"},
            "A beats B by 1.3 epochs (95 % interval 0.6 to 2.0, 5 seeds, p = 0.040 after Holm). "
            "1 seed that only one of them has is left out.",
        ),
        (
            {"difference": 1.3, "low": 0.6, "high": 2.0, "p_holm": 0.01, "seeds": 4},
            {},
            "Trend: A beats B by 1.3 points (95 % interval 0.6 to 2.0, 4 seeds, p = 0.010 after "
            "Holm); a claim needs 5 seeds.",
        ),
        (
            {"difference": -0.02, "low": -0.9, "high": 0.86, "p_holm": 0.9, "seeds": 3},
            {"unit": ""},
            "No trend found between A and B: 0.0 (95 % interval −0.9 to 0.9, 3 seeds, p = 0.900 "
            "after Holm); a difference beyond 0.9 would be unlikely.",
        ),
        (
            {"difference": 0.0, "low": nan, "high": nan, "p_holm": nan, "sd": 0.0},
            {},
            "A and B gave the same in each of 5 seeds.",
        ),
        (
            {"difference": -2.0, "low": nan, "high": nan, "p_holm": nan, "sd": 0.0},
            {},
            "A lies below B by the same 2.0 points in each of 5 seeds: without any spread there "
            "is nothing to test.",
        ),
    ],
)
def test_sentences(numbers: dict[str, float], options: dict[str, object], expected: str) -> None:
    assert sentence({**ROW, **numbers}, **options) == expected
    assert sentence(pd.Series({**ROW, **numbers}), **options) == expected


def test_differences_by_rounding_are_no_spread() -> None:
    seeds = np.array([70.1, 71.3, 72.7])
    [row] = compare(
        table_of({"A": (seeds + 0.1).tolist(), "B": seeds.tolist()}), "top1", reference="B"
    ).to_dict("records")
    assert row["sd"] == 0 and isnan(row["p"]) and row["difference"] == pytest.approx(0.1)


def test_epochs_to_reach_and_those_that_did_not() -> None:
    curves = [[0.1, 0.4, 0.6, 0.5], [0.6, 0.1, 0.1, 0.1], [0.1, 0.2, nan, nan]]
    epochs = epochs_to_reach(curves, 0.5)
    assert epochs[:2].tolist() == [3, 1] and isnan(epochs[2])
    means = summarise(table_of({"A": epochs.tolist()}), "top1").iloc[0]
    assert means["mean"] == 2 and means["missing"] == 1
    assert epochs_to_reach([0.2, 0.5], 0.5) == 2


def test_refusals() -> None:
    table = table_of({"A": [1.0, 2.0], "B": [1.0, 3.0]})
    with pytest.raises(KeyFiltersError, match="no column 'top'; it has condition, seed, top1; the"):
        summarise(table, "top")
    with pytest.raises(KeyFiltersError, match="A has seed 0 twice"):
        summarise(pd.concat([table, table[:1]]), "top1")
    with pytest.raises(KeyFiltersError, match="no condition 'C'; the table has A, B"):
        compare(table, "top1", reference="C")
    with pytest.raises(KeyFiltersError, match="A is compared with itself"):
        compare(table, "top1", pairs=[("A", "A")])
    with pytest.raises(KeyFiltersError, match="give one of reference"):
        compare(table, "top1")


def test_an_interval_without_zero_that_many_comparisons_do_not_support_is_told() -> None:
    row = {"condition": "new", "reference": "old", "seeds": 5, "missing": 0, "sd": 0.5, "p": 0.002}
    row |= {"difference": 1.3, "low": 0.6, "high": 2.0, "p_holm": 0.056, "tests": 28}
    told = sentence(row)
    assert told.startswith("new lies above old by 1.3 points (95 % interval 0.6 to 2.0, 5 seeds)")
    assert "but 28 comparisons together do not support it (p = 0.056 after Holm)" in told
    below = sentence({**row, "difference": -1.3, "low": -2.0, "high": -0.6})
    assert below.startswith("old lies above new by 1.3 points (95 % interval 0.6 to 2.0, 5 seeds)")


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-0.5, 0.9, "new matches old within 1 points"),
        (-0.5, 1.1, "Not decided whether new matches old within 1 points"),
        (-4.0, 4.0, "Not decided"),
    ],
)
def test_a_match_is_an_interval_within_the_margin(low: float, high: float, told: str) -> None:
    row = {"condition": "new", "reference": "old", "seeds": 5, "missing": 0, "sd": 1.0, "p": 0.5}
    row |= {"difference": (low + high) / 2, "low": low, "high": high, "p_holm": 0.5, "tests": 1}
    assert match_sentence(row, 1.0).startswith(told)
    clear = match_sentence({**row, "difference": 0.5, "p_holm": 0.01}, 1.0)
    assert clear.startswith("new beats old")
    assert match_sentence({**row, "seeds": 2}, 1.0).endswith("at least 3 are needed).")

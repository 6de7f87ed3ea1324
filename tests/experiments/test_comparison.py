from __future__ import annotations

from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.comparison import compare, summarise
from keyfilters.experiments.questions import Association, Contrast, Trend
from keyfilters.experiments.sentences import headline, sentence

VALUES = st.integers(-1000, 1000).map(lambda i: i / 8)  # no differences by rounding only


def table_of(values: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Table of a grid from level of the factor "of" → value of seed 0, 1, ..."""
    rows = [
        {"of": of, "seed": seed, "top1": x, **{name: f(of, seed) for name, f in columns.items()}}
        for of, column in values.items()
        for seed, x in enumerate(column)
    ]
    return pd.DataFrame(rows)


def versus(one: str, other: str, **more: Any) -> Contrast:
    return Contrast("Is it so?", {"of": one}, {"of": other}, **more)


def name(levels: Any) -> str:
    return ", ".join(str(x) for x in levels.values())


def slow_holm(p: list[float]) -> list[float]:
    """Holm's definition, term by term."""
    m, ordered = len(p), sorted(p)
    stepped = [max(min(1.0, (m - j) * ordered[j]) for j in range(i + 1)) for i in range(m)]
    return [stepped[ordered.index(x)] for x in p]


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(float, st.tuples(st.integers(3, 9), st.just(2)), elements=VALUES))
def test_differences_agree_with_scipy(values: np.ndarray) -> None:
    a, b = values.T
    table = table_of({"A": a.tolist(), "B": b.tolist()})
    [row] = compare(table, ["of"], [versus("A", "B")]).to_dict("records")
    assert row["estimate"] == pytest.approx((a - b).mean(), abs=1e-12)
    if np.ptp(a - b) == 0:
        assert row["verdict"] == "untested" and isnan(row["p"]) and isnan(row["low"])
        return
    expected = stats.ttest_rel(a, b)
    assert row["p"] == row["p_holm"] == pytest.approx(expected.pvalue, rel=1e-9)
    interval = tuple(expected.confidence_interval(0.95))
    assert (row["low"], row["high"]) == pytest.approx(interval, rel=1e-9, abs=1e-9)
    mean = summarise(table, ["of"], "top1").iloc[0]
    if np.ptp(a) > 0:
        interval = stats.t.interval(0.95, len(a) - 1, a.mean(), stats.sem(a))
        assert (mean["low"], mean["high"]) == pytest.approx(interval, rel=1e-9, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(float, st.integers(3, 8), elements=VALUES), st.integers(1, 50))
def test_equivalence_is_two_one_sided_tests(differences: np.ndarray, margin: int) -> None:
    if np.ptp(differences) == 0:
        return
    table = table_of({"A": differences.tolist(), "B": [0.0] * len(differences)})
    [row] = compare(table, ["of"], [versus("A", "B", margin=margin)]).to_dict("records")
    expected = max(
        stats.ttest_1samp(differences, -margin, alternative="greater").pvalue,
        stats.ttest_1samp(differences, margin, alternative="less").pvalue,
    )
    assert row["p_equal"] == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_holm_is_over_all_questions_of_a_page() -> None:
    generator = np.random.default_rng(0)
    columns = {of: generator.normal(size=5).tolist() for of in "ABCD"}
    questions = [
        versus("A", "D", margin=1.0),
        versus("B", "D"),
        Association("Together?", "top1", "seed"),  # four conditions are too few for a test
        versus("C", "D", claim=False),
    ]
    found = compare(table_of(columns), ["of"], questions)
    p = [found["p"][0], found["p"][1], found["p_equal"][0]]
    corrected = [found["p_holm"][0], found["p_holm"][1], found["p_equal_holm"][0]]
    assert corrected == pytest.approx(slow_holm(p))
    assert (found["tests"] == 3).all() and found["verdict"].tolist()[2:] == ["few", "untested"]


def test_conditions_are_compared_that_differ_in_these_levels_only() -> None:
    rows = [
        {"keys": keys, "learn": learn, "seed": seed, "top1": float(seed + (keys == "own"))}
        for keys in ("own", "random")
        for learn in (None, "bias")
        for seed in range(3)
        if (keys, learn) != ("random", "bias")
    ]
    found = compare(
        pd.DataFrame(rows), ["keys", "learn"], [Contrast("", {"keys": "own"}, {"keys": "random"})]
    )
    assert len(found) == 1 and found["condition"][0] == {"keys": "own", "learn": None}
    assert found["estimate"][0] == 1


def test_slopes_of_single_seeds_are_tested() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, (4, 6))
    rows = [
        {
            "of": of,
            "size": size,
            "seed": seed,
            "top1": (of == "A") * 2.0 * size + noise[place, seed],
        }
        for place, (of, size) in enumerate((of, size) for of in "AB" for size in (3, 7))
        for seed in range(6)
    ]
    trend = Trend("Does it grow?", {"of": "A"}, {"of": "B"}, "size", "tap")
    [row] = compare(pd.DataFrame(rows), ["of", "size"], [trend]).to_dict("records")
    slopes = [(2 * 4 + noise[1, s] - noise[3, s] - noise[0, s] + noise[2, s]) / 4 for s in range(6)]
    assert row["estimate"] == pytest.approx(np.mean(slopes))
    assert row["p"] == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue)
    assert row["verdict"] == "higher" and "grows by 1.96" in sentence(row, name)


def test_slopes_need_two_places_and_seeds_that_have_them_all() -> None:
    rows = [
        {"of": of, "size": size, "seed": seed, "top1": (of == "A") * 2.0 * size + seed}
        for of in "AB"
        for size in (3, 7)
        for seed in range(3)
    ]
    trend = Trend("Does it grow?", {"of": "A"}, {"of": "B"}, "size", "tap")
    table = pd.DataFrame(rows)
    [row] = compare(table, ["of", "size"], [trend]).to_dict("records")
    assert row["estimate"] == pytest.approx(2) and row["missing"] == 0
    lost = table.assign(top1=table["top1"].where(table["size"] == 3))  # all runs of one size
    [row] = compare(lost, ["of", "size"], [trend]).to_dict("records")
    assert isnan(row["estimate"]) and (row["seeds"], row["missing"]) == (0, 3)
    assert row["verdict"] == "few"
    with pytest.raises(KeyFiltersError, match="no two conditions"):
        compare(table[table["size"] == 3], ["of", "size"], [trend])


def test_a_page_that_establishes_nothing_says_so() -> None:
    table = table_of({"A": [1.0, -1.0, 0.5, -0.5, 0.2], "B": [0.0] * 5})
    found = compare(table, ["of"], [versus("A", "B")])
    assert found["verdict"].tolist() == ["open"]
    assert headline(found, name).startswith("None of 1 comparisons")


def test_unrelated_kinds_of_training_are_rarely_found_to_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interval by resampling conditions did so in one page of six."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # statsmodels does so at every correction
    generator = np.random.default_rng(1)
    pages, claims, inside = 120, 0, 0
    question = Association("Together?", "beyond")
    for _ in range(pages):
        means = generator.normal(size=(9, 2))
        rows = [
            {"of": of, "seed": seed, "top1": a + x, "beyond": b + y}
            for of, (a, b) in enumerate(means)
            for seed, (x, y) in enumerate(0.2 * generator.normal(size=(5, 2)))
        ]
        [row] = compare(pd.DataFrame(rows), ["of"], [question]).to_dict("records")
        claims += row["verdict"] in ("higher", "lower")
        inside += row["low"] <= 0 <= row["high"]
    most = stats.binom.ppf(0.999, pages, 0.05)  # one page of six would be more
    assert claims <= most and pages - inside <= most
    rows = [{"of": of, "seed": 0, "top1": of, "beyond": of**3} for of in range(9)]
    [row] = compare(pd.DataFrame(rows), ["of"], [question]).to_dict("records")
    assert row["estimate"] == pytest.approx(1) and row["verdict"] == "higher"


def test_missing_seeds_are_left_out_and_counted() -> None:
    table = table_of({"A": [5.0, 6.0, 7.0, nan], "B": [4.0, 4.5, 6.5, 5.0]})
    table["status"] = "done"
    table.loc[0, "status"] = "failed"
    [row] = compare(table, ["of"], [versus("A", "B")]).to_dict("records")
    assert (row["seeds"], row["missing"], row["verdict"]) == (2, 2, "few")
    assert row["estimate"] == pytest.approx(1.0)
    means = summarise(table, ["of"], "top1")
    assert means["seeds"].tolist() == [2, 4] and means["missing"].tolist() == [2, 0]
    never = table_of({"A": [5.0, np.inf, 7.0, 8.0], "B": [4.0, 4.5, 6.5, 5.0]})
    [row] = compare(never, ["of"], [versus("A", "B")]).to_dict("records")
    assert row["verdict"] == "untested" and row["missing"] == 1


def test_three_seeds_are_a_trend_and_five_a_claim() -> None:
    for seeds, trend in ((3, True), (5, False)):
        table = table_of({"A": [2.0 + 0.01 * x for x in range(seeds)], "B": [0.0] * seeds})
        [row] = compare(table, ["of"], [versus("A", "B")]).to_dict("records")
        text = sentence(row, name)
        assert row["verdict"] == "higher" and text.startswith("Trend: ") is trend
        assert text.replace("Trend: ", "").startswith("A is above B by 2.0 points")
    equal = table_of({"A": [0.1, -0.1, 0.0, 0.1, -0.1], "B": [0.0] * 5})
    found = compare(equal, ["of"], [versus("A", "B", margin=1.0)])
    assert found["verdict"].tolist() == ["equal"] and "equals" in headline(found, name)


def test_two_results_of_one_condition() -> None:
    table = table_of({"A": [1.0, 2.0, 4.0]}, half=lambda of, seed: 0.0)
    question = Contrast("Later?", {"of": "A"}, {"of": "A"}, other_value="half", unit="steps")
    [row] = compare(table, ["of"], [question]).to_dict("records")
    assert row["estimate"] == pytest.approx(7 / 3) and row["unit"] == "steps"


def test_refusals() -> None:
    table = table_of({"A": [1.0], "B": [2.0]})
    for factors, questions, words in (
        (["off"], [], "no column 'off'.*of"),
        (["of"], [versus("A", "B", value="topp1")], "no column 'topp1'.*top1"),
        (["of"], [versus("A", "C")], "no two conditions"),
    ):
        with pytest.raises(KeyFiltersError, match=words):
            compare(table, factors, questions)
    with pytest.raises(KeyFiltersError, match="twice"):
        summarise(pd.concat([table, table]), ["of"], "top1")

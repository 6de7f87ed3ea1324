"""One function that compares: paired differences, equivalence, slopes and rank correlations.

Runs of one seed share all that is random, so that conditions are compared seed by seed. The
p-values of all questions of a page are corrected together (Holm), so that with no true difference
at most 5 % of pages claim one. House rule: three seeds before a trend, five before a claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, log2, nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from keyfilters.errors import KeyFiltersError, nearest, needing
from keyfilters.experiments.questions import Association, Contrast, Question, Trend

__all__ = ["CLAIM", "CONDITIONS", "LEVEL", "TREND", "compare", "epochs_to_reach", "summarise"]

TREND, CLAIM = 3, 5  # seeds
CONDITIONS = 6  # for a rank correlation
LEVEL = 0.05
Array = NDArray[np.float64]
Row = tuple[tuple[str, Any], ...]  # of factors and their levels


def compare(
    table: pd.DataFrame, factors: Sequence[str], questions: Iterable[Question]
) -> pd.DataFrame:
    """Answer the questions of an experiment from the table of its runs.

    Difference: paired t-test. Equivalence within ± margin: two one-sided t-tests (TOST). Slope:
    t-test of the slopes of the single seeds. Association: permutation test of the correlation of
    ranks of the conditions' means. Holm's correction is over all p-values of the call.

    Args:
        table: one row a run with the factors, seed and results; of rows with a status only "done".
        factors: names of its columns that make a condition.
        questions: those whose conditions have not run are left out.

    Returns:
        One row a comparison: question, kind (difference, slope or association), condition and
        reference (rows of factors as dictionaries), value, unit, seeds (common; of an association
        conditions), missing (those left out), estimate, low and high (95 % interval of this
        comparison alone), effect (Hedges' g, the difference over the spread within conditions), p,
        p_holm, margin, p_equal and p_equal_holm (of equivalence), tests (number of p-values
        corrected together) and verdict: "few", "untested", "higher", "lower", "equal" or "open".

    Raises:
        KeyFiltersError: a column is missing, a condition has a seed twice, or nothing compares.
        MissingExtraError: statsmodels is not installed.
    """
    with needing("train", "comparing runs"):
        from statsmodels.stats.multitest import multipletests
    runs = _Runs(table, factors)
    answers: dict[Any, Any] = {Contrast: _contrasts, Trend: _slopes, Association: _association}
    rows = [row for question in questions for row in answers[type(question)](runs, question)]
    if not rows:
        raise KeyFiltersError("no two conditions of the table are compared; run more of them")
    found = pd.DataFrame(rows)
    claims = found.pop("claim").to_numpy(bool) & (found["seeds"] >= TREND).to_numpy()
    both = np.where(claims, np.stack([found["p"], found["p_equal"]]), nan)
    if (tested := ~np.isnan(both)).any():
        both[tested] = multipletests(both[tested], LEVEL, "holm")[1]
    found["p_holm"], found["p_equal_holm"] = both
    found["tests"] = int(tested.sum())
    return found.assign(verdict=[_verdict(row) for row in found.to_dict("records")])


def summarise(table: pd.DataFrame, factors: Sequence[str], value: str) -> pd.DataFrame:
    """Return mean, spread and 95 % t-interval of every condition.

    Args:
        table: as for `compare`.
        factors: as for `compare`.
        value: name of a result.

    Returns:
        One row a condition, in the order of the table: its factors, seeds (with a value), missing
        (without), mean, sd, low and high; what cannot be said is NaN.
    """
    runs = _Runs(table, factors)
    rows = []
    for row in runs.places:
        values = runs.values(row, value)[list(runs.places[row])]
        numbers = dict(zip(("mean", "sd", "low", "high"), _interval(values), strict=True))
        known = int(np.isfinite(values).sum())
        rows.append({**dict(row), "seeds": known, "missing": len(values) - known, **numbers})
    return pd.DataFrame(rows)


def epochs_to_reach(curve: ArrayLike, level: float) -> float:
    """Return after how many epochs a curve ``(epochs,)`` first reached a level; infinity if never.

    >>> epochs_to_reach([0.2, 0.5, 0.4], 0.5), epochs_to_reach([0.1, 0.2, 0.3], 0.5)
    (2.0, inf)
    """
    above = np.asarray(curve, np.float64) >= level
    return float(above.argmax() + 1) if above.any() else float("inf")


class _Runs:
    """The finished runs of a table by condition and seed."""

    def __init__(self, table: pd.DataFrame, factors: Sequence[str]) -> None:
        self.table, self.columns = table, dict[str, Array]()
        for name in (*factors, "seed"):
            self._check(name)
        self.seeds = sorted(set(table["seed"]))
        self.places: dict[Row, dict[int, int]] = {}  # condition → number of seed → row of table
        for place, (row, seed) in enumerate(
            zip(table[list(factors)].to_dict("records"), table["seed"], strict=True)
        ):
            of = self.places.setdefault(_row(row), {})
            if (number := self.seeds.index(seed)) in of:
                raise KeyFiltersError(f"{row} has seed {seed} twice; once is expected")
            of[number] = place

    def _check(self, name: str) -> None:
        if name not in self.table:
            known = [str(x) for x in self.table]
            listed = f"the table has {', '.join(known)}{nearest(name, known)}"
            raise KeyFiltersError(f"no column {name!r}; {listed}")

    def values(self, row: Row, value: str) -> Array:
        """Return a result of one condition by seed ``(seeds,)``, NaN where there is none."""
        if value not in self.columns:
            self._check(value)
            numbers = pd.to_numeric(self.table[value], errors="coerce").to_numpy(np.float64)
            done = self.table["status"].eq("done") if "status" in self.table else True
            self.columns[value] = np.where(done, numbers, nan)
        found = np.full(len(self.seeds), nan)
        found[list(self.places[row])] = self.columns[value][list(self.places[row].values())]
        return found

    def pairs(self, question: Contrast | Trend) -> list[tuple[Row, Row]]:
        """Return the conditions of some levels, each beside that of its row with other levels."""
        found = []
        itself = isinstance(question, Contrast) and bool(question.other_value)
        for row in self.places:
            levels = dict(row)
            if all(name in levels and levels[name] == x for name, x in question.one.items()):
                other = _row({**levels, **question.other})
                if other in self.places and (itself or other != row):
                    found.append((row, other))
        return found


def _contrasts(runs: _Runs, question: Contrast) -> list[dict[str, Any]]:
    found = []
    names = (question.value, question.other_value)  # shown where two results are compared
    of = [{"of": name} if question.other_value else {} for name in names]
    for one, other in runs.pairs(question):
        sides = (
            runs.values(one, question.value),
            runs.values(other, question.other_value or question.value),
        )
        row = _test(sides[0] - sides[1], question.margin)
        row |= {"question": question.words, "kind": "difference", "effect": _hedges(*sides)}
        row |= {"condition": {**dict(one), **of[0]}, "value": question.value}
        row |= {"reference": {**dict(other), **of[1]}, "unit": question.unit}
        margin = nan if question.margin is None else question.margin
        found.append({**row, "margin": margin, "claim": question.claim})
    return found


def _slopes(runs: _Runs, question: Trend) -> list[dict[str, Any]]:
    """Fit and test slopes for each row of the other factors."""
    groups: dict[Row, list[tuple[Row, Row]]] = {}
    for pair in runs.pairs(question):
        if dict(pair[0])[question.along] is None:  # this condition has no place on the line
            continue
        rest = tuple(item for item in pair[0] if item[0] != question.along)
        groups.setdefault(rest, []).append(pair)
    found = []
    for rest, members in groups.items():
        at = [float(dict(one)[question.along]) for one, _ in members]
        at = [log2(x) for x in at] if question.per == "doubling" else at
        if len(set(at)) < 2:
            continue
        value = question.value
        gains = np.array([runs.values(a, value) - runs.values(b, value) for a, b in members])
        whole, slopes = np.isfinite(gains).all(0), np.full(len(runs.seeds), nan)
        if whole.any():
            slopes[whole] = np.polyfit(at, gains[:, whole], 1)[0]
        row = {**_test(slopes), "question": question.words, "kind": "slope", "value": value}
        row |= {"condition": dict(rest), "reference": {**dict(rest), **question.other}}
        row |= {"unit": f"{question.unit} a {question.per}", "effect": nan, "margin": nan}
        found.append({**row, "claim": True})
    return found


def _association(runs: _Runs, question: Association) -> list[dict[str, Any]]:
    """Correlate the ranks of the conditions' means; the interval is Fisher's for these ranks."""
    from scipy.stats import PermutationMethod, pearsonr, rankdata

    both = [[runs.values(row, x) for row in runs.places] for x in (question.one, question.other)]
    means = np.array([[_interval(x)[0] for x in side] for side in both])
    means = means[:, np.isfinite(means).all(0)]
    row: dict[str, Any] = {"estimate": nan, "low": nan, "high": nan, "p": nan, "p_equal": nan}
    if means.shape[1] >= CONDITIONS and (np.ptp(means, axis=1) > 0).all():
        ranks = rankdata(means, axis=1)
        drawn = PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
        fisher, permuted = pearsonr(*ranks), pearsonr(*ranks, method=drawn)
        low, high = fisher.confidence_interval(0.95)
        row |= {"estimate": float(fisher.statistic), "p": float(permuted.pvalue)}
        row |= {"low": float(low), "high": float(high)}
    row |= {"question": question.words, "kind": "association", "value": question.one, "unit": ""}
    row |= {"condition": {"of": question.one}, "reference": {"of": question.other}}
    counts = {"seeds": means.shape[1], "missing": len(runs.places) - means.shape[1]}
    return [{**row, **counts, "effect": nan, "margin": nan, "claim": True}]


def _test(differences: Array, margin: float | None = None) -> dict[str, Any]:
    """Test paired differences ``(seeds,)``; NaN is missing, and infinity (never) allows no test."""
    from statsmodels.stats.weightstats import DescrStatsW

    known = differences[np.isfinite(differences)]
    mean, sd, low, high = _interval(known)
    p = p_equal = nan
    if sd > 0 and not np.isinf(differences).any():
        p = float(DescrStatsW(known).ttest_mean(0.0)[1])
        p_equal = (
            nan if margin is None else float(DescrStatsW(known).ttost_mean(-margin, margin)[0])
        )
    counts = {"seeds": len(known), "missing": len(differences) - len(known)}
    return {**counts, "estimate": mean, "low": low, "high": high, "p": p, "p_equal": p_equal}


def _interval(values: Array) -> tuple[float, float, float, float]:
    """Return mean, sd and the 95 % t-interval; values that differ by rounding only have sd 0."""
    from statsmodels.stats.weightstats import DescrStatsW

    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else nan), nan, nan, nan
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return float(values.mean()), 0.0, nan, nan
    stats = DescrStatsW(values, ddof=1)
    low, high = stats.tconfint_mean(0.05)
    return float(stats.mean), float(stats.std), float(low), float(high)


def _hedges(one: Array, other: Array) -> float:
    """Return Hedges' g of two conditions over their common seeds."""
    from statsmodels.stats.meta_analysis import effectsize_smd

    known = np.isfinite(one) & np.isfinite(other)
    one, other, n = one[known], other[known], int(known.sum())
    if n < 2 or one.std() + other.std() == 0:
        return nan
    return float(effectsize_smd(*(f(x) for x in (one, other) for f in (np.mean, _sd, len)))[0])


def _sd(values: Array) -> float:
    return float(values.std(ddof=1))


def _verdict(row: Mapping[Any, Any]) -> str:
    """Say what a comparison supports; see `compare`."""
    if row["seeds"] < (CONDITIONS if row["kind"] == "association" else TREND):
        return "few"
    if isnan(row["p_holm"]):
        return "untested"
    if row["p_holm"] < LEVEL:
        return "higher" if row["estimate"] > 0 else "lower"
    return "equal" if row["p_equal_holm"] < LEVEL else "open"


def _row(levels: Mapping[str, Any]) -> Row:
    """Return a row of factors as a key: no level is NaN, and whole numbers are integers."""
    return tuple((name, _level(x)) for name, x in levels.items())


def _level(level: Any) -> Any:
    level = level.item() if isinstance(level, np.generic) else level
    if level is pd.NA or (isinstance(level, float) and isnan(level)):
        return None
    return int(level) if isinstance(level, float) and level.is_integer() else level

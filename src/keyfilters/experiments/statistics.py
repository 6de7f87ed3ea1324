"""What the numbers of a grid support: means, paired differences, and one sentence for each.

Runs of the same seed share all that is random, so that conditions are compared seed by seed: the
differences of the pairs spread less than the runs do. House rule: three seeds before a trend, five
before a claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, stdtr, stdtrit

from keyfilters.errors import KeyFiltersError, nearest

__all__ = [
    "by_seed",
    "compare",
    "epochs_to_reach",
    "holm",
    "match_sentence",
    "sentence",
    "slope_sentence",
    "summarise",
]

TREND, CLAIM = 3, 5  # seeds
LEVEL = 0.05


def summarise(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return mean and spread of every condition.

    The interval is mean ± t·sd/√n, with the 97.5 % quantile t of Student's distribution with n − 1
    degrees of freedom.

    Args:
        table: one row a run with condition, seed and `value`; of rows with a status only "done".
        value: name of the column.

    Returns:
        One row a condition, in the order of the table: condition, seeds (with a value), missing
        (seeds of the table without one: failed, NaN or never run), mean, sd, low and high (95 %
        interval; NaN below two seeds, or where all seeds gave the same number).

    Raises:
        KeyFiltersError: a column is missing, or a condition has a seed twice.

    >>> table = pd.DataFrame({"condition": "A", "seed": [0, 1, 2], "top1": [70.0, 71.0, 72.0]})
    >>> summarise(table, "top1").round(2).to_dict("records")
    [{'condition': 'A', 'seeds': 3, 'missing': 0, 'mean': 71.0, 'sd': 1.0, 'low': 68.52,
      'high': 73.48}]
    """
    wide = by_seed(table, value)
    rows = []
    for condition, values in wide.items():
        known = values.dropna().to_numpy()
        mean, sd, low, high = _interval(known)
        row = {"condition": condition, "seeds": len(known), "missing": len(wide) - len(known)}
        rows.append({**row, "mean": mean, "sd": sd, "low": low, "high": high})
    return pd.DataFrame(rows)


def compare(
    table: pd.DataFrame,
    value: str,
    *,
    reference: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Compare conditions pair by pair over their common seeds.

    The test is Student's for paired samples, two-sided; the p-values are corrected by Holm's
    method over all comparisons of the call that could be tested. The effect is Cohen's d of the
    paired differences, mean/sd (d_z), times Hedges' factor Γ(m/2) / (√(m/2) Γ((m − 1)/2)) with
    m = n − 1, which removes its bias in small samples.

    Args:
        table: as for `summarise`.
        value: name of the column.
        reference: compare every other condition with this one; or
        pairs: (condition, the one it is compared with), ….

    Returns:
        One row a comparison: condition, reference, seeds (common), missing (seeds that only one of
        them has), difference (mean of condition − reference), sd (of the differences), low and high
        (95 % interval, not corrected), p, tests (number that p is corrected for), p_holm and
        effect. Fewer than two common seeds, or
        differences all alike, allow no test: sd is 0 then, or NaN, and what follows it is NaN.

    Raises:
        KeyFiltersError: as `summarise`; an unknown condition, or not one of `reference`, `pairs`.
    """
    wide = by_seed(table, value)
    if (reference is None) == (pairs is None):
        raise KeyFiltersError("give one of reference='NAME' and pairs=[('NAME', 'OTHER'), …]")
    chosen = [(name, reference) for name in wide if name != reference] if pairs is None else pairs
    for name in {name: None for pair in chosen for name in pair}:
        if name not in wide:
            known = ", ".join(wide)
            raise KeyFiltersError(
                f"no condition {name!r}; the table has {known}{nearest(str(name), wide)}"
            )
    rows = []
    for name, other in chosen:
        if name == other:
            raise KeyFiltersError(f"{name} is compared with itself; two conditions are expected")
        both = wide[[name, other]].dropna(how="all")
        differences = (both[name] - both[other]).dropna().to_numpy()
        n = len(differences)
        largest = float(np.nanmax(np.abs(both.to_numpy()), initial=0.0))
        mean, sd, low, high = _interval(differences, largest)
        t = mean / (sd / sqrt(n)) if sd > 0 else nan
        p = float(2 * stdtr(n - 1, -abs(t))) if sd > 0 else nan
        effect = mean / sd * _hedges(n - 1) if sd > 0 else nan
        row = {"condition": name, "reference": other, "seeds": n, "missing": len(both) - n}
        row |= {"difference": mean, "sd": sd, "low": low, "high": high, "p": p}
        rows.append({**row, "p_holm": nan, "effect": effect})
    found = pd.DataFrame(rows)
    if not rows:
        return found
    found.insert(found.columns.get_loc("p_holm"), "tests", int(found["p"].notna().sum()))
    return found.assign(p_holm=holm(found["p"]))


def sentence(
    comparison: Mapping[Any, Any] | pd.Series,
    *,
    unit: str = "points",
    digits: int = 1,
    higher_is_better: bool = True,
    beats: str = "beats",
) -> str:
    """Say in one sentence what a row of `compare` supports, and no more.

    Args:
        comparison: the row.
        unit: of the differences, "" for none.
        digits: decimals of the differences.
        higher_is_better: False for a loss or a number of epochs.
        beats: the verb; "exceeds" where more is not better.

    >>> row = dict(condition="center-surround", reference="default", seeds=5, missing=0, sd=0.56,
    ...            difference=1.3, low=0.6, high=2.0, p=0.002, p_holm=0.004)
    >>> sentence(row)
    'center-surround beats default by 1.3 points (95 % interval 0.6 to 2.0, 5 seeds,
    p = 0.004 after Holm).'
    >>> sentence({**row, "difference": 0.2, "low": -0.9, "high": 1.3, "p": 0.6, "p_holm": 0.6})
    'No difference found between center-surround and default: 0.2 points (95 % interval −0.9 to 1.3,
    5 seeds, p = 0.600 after Holm); a difference beyond 1.3 points would be unlikely.'
    """
    row = dict(comparison)
    one, other, n = row["condition"], row["reference"], int(row["seeds"])

    def amount(x: float, of: str = unit) -> str:
        return f"{0.0 if round(x, digits) == 0 else x:.{digits}f} {of}".strip().replace("-", "−")

    note = ""
    if left_out := int(row["missing"]):
        are = "is" if left_out == 1 else "are"
        note = f" {_seeds(left_out)} that only one of them has {are} left out."
    if n < TREND:
        many = f"{_seeds(n)} in common, at least {TREND} are needed"
        return f"{one} against {other}: too few seeds to say ({many}).{note}"
    difference, low, high = (float(row[name]) for name in ("difference", "low", "high"))
    if isnan(row["p_holm"]):
        if difference == 0:
            return f"{one} and {other} gave the same in each of {_seeds(n)}.{note}"
        by = f"by the same {amount(abs(difference))} in each of {_seeds(n)}"
        more = "above" if difference > 0 else "below"
        doubt = "without any spread there is nothing to test."
        return f"{one} lies {more} {other} {by}: {doubt}{note}"
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
    better = (difference > 0) == higher_is_better
    if row["p_holm"] < LEVEL:
        winner, loser = (one, other) if better else (other, one)
        low, high = (low, high) if difference > 0 else (-high, -low)
        difference = abs(difference)
        found = f"{winner} {beats} {loser} by"
    else:
        found = f"No {'difference' if n >= CLAIM else 'trend'} found between {one} and {other}:"
    interval = f"95 % interval {amount(low, '')} to {amount(high, '')}"
    found += f" {amount(difference)} ({interval}, {_seeds(n)}, {p} after Holm)"
    if row["p_holm"] >= LEVEL and (low > 0 or high < 0):
        above, below = (one, other) if difference > 0 else (other, one)
        low, high = (low, high) if difference > 0 else (-high, -low)
        interval = f"95 % interval {amount(low, '')} to {amount(high, '')}"
        return (
            f"{above} lies above {below} by {amount(abs(difference))} ({interval}, {_seeds(n)}), "
            f"but {int(row['tests'])} comparisons together do not support it "
            f"({p} after Holm).{note}"
        )
    if row["p_holm"] >= LEVEL:
        bound = amount(max(abs(low), abs(high)))
        return f"{found}; a difference beyond {bound} would be unlikely.{note}"
    if n < CLAIM:
        return f"Trend: {found}; a claim needs {CLAIM} seeds.{note}"
    return f"{found}.{note}"


def match_sentence(comparison: Mapping[Any, Any] | pd.Series, margin: float) -> str:
    """Say whether two conditions are equal but for a margin, which no test of difference can say.

    They match if the 95 % interval of the difference lies within ± margin.

    Args:
        comparison: a row of `compare`, in points.
        margin: largest difference that does not matter, in points.

    >>> row = dict(condition="frozen", reference="learned", seeds=5, missing=0, sd=0.3, p=0.4,
    ...            difference=-0.1, low=-0.5, high=0.3, tests=1, p_holm=0.4)
    >>> match_sentence(row, 1.0)
    'frozen matches learned within 1 points: −0.1 points (95 % interval −0.5 to 0.3, 5 seeds).'
    """
    row = dict(comparison)
    one, other, n = row["condition"], row["reference"], int(row["seeds"])
    low, high = float(row["low"]), float(row["high"])
    if n < TREND or isnan(low) or float(row["p_holm"]) < LEVEL:
        return sentence(row)
    told = f"{row['difference']:.1f} points (95 % interval {low:.1f} to {high:.1f}, {_seeds(n)})"
    told = told.replace("-", "−")
    if -margin < low and high < margin:
        trend = "Trend: " if n < CLAIM else ""
        return f"{trend}{one} matches {other} within {margin:g} points: {told}."
    return f"Not decided whether {one} matches {other} within {margin:g} points: {told}."


def slope_sentence(
    table: pd.DataFrame,
    value: str,
    pairs: Sequence[tuple[str, str]],
    at: Sequence[float],
    per: str,
) -> str:
    """Say whether the difference of two conditions changes along a scale.

    Args:
        table: as for `summarise`.
        value: name of the column, in points.
        pairs: (condition, reference) at each place of the scale.
        at: the places; the slope of a straight line is fitted seed by seed.
        per: unit of the scale, such as ``"a tap"``.
    """
    wide = by_seed(table, value)
    if not {condition for pair in pairs for condition in pair} <= set(wide):
        return "Not all of it has run."
    gains = pd.concat([wide[one] - wide[other] for one, other in pairs], axis=1).dropna()
    if len(gains) < TREND:
        return f"Too few seeds to say ({len(gains)}, at least {TREND} are needed)."
    slopes = np.polyfit(at, gains.to_numpy().T, 1)[0]
    mean, _, low, high = _interval(slopes)
    interval = f"(95 % interval {low:+.2f} to {high:+.2f}, {_seeds(len(slopes))})"
    told = f"by {mean:+.2f} points {per} {interval}".replace("-", "−")
    if low > 0 or high < 0:
        trend = "" if len(slopes) >= CLAIM else "Trend: "
        return f"{trend}The gain {'grows' if mean > 0 else 'falls'} {told}."
    return f"No such change found: it changes {told}."


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p-values corrected by Holm's method; NaN stands for no test and stays.

    The i-th smallest of m is multiplied by m − i + 1, and no value may fall below the one before.

    >>> holm([0.01, 0.04, 0.03, nan])
    array([0.03, 0.06, 0.06,  nan])
    """
    corrected = np.array(p, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(corrected))
    order = tested[np.argsort(corrected[tested], kind="stable")]
    raised = corrected[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return corrected


def epochs_to_reach(curves: ArrayLike, level: float) -> NDArray[np.float64]:
    """Return after how many epochs a curve first reached a level.

    NaN says that it did not: `summarise` counts such runs as missing, and the mean of the others is
    too low then.

    Args:
        curves: ``(..., epochs)`` accuracies after epoch 1, 2, …; NaN after the end of short ones.
        level: on their scale.

    Returns:
        ``(...)`` epochs counted from 1.

    >>> epochs_to_reach([[0.2, 0.5, 0.4], [0.1, 0.2, 0.3]], 0.5)
    array([ 2., nan])
    """
    above = np.asarray(curves, dtype=np.float64) >= level
    return np.where(above.any(-1), above.argmax(-1) + 1.0, nan)


def by_seed(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a column as ``(seeds, conditions)``; infinite and unfinished values are NaN.

    Raises:
        KeyFiltersError: as `summarise`.
    """
    for name in ("condition", "seed", value):
        if name not in table:
            known = ", ".join(map(str, table))
            raise KeyFiltersError(
                f"the table has no column {name!r}; it has {known}{nearest(name, table)}"
            )
    twice = table[table.duplicated(["condition", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise KeyFiltersError(f"{row['condition']} has seed {row['seed']} twice; once is expected")
    values = pd.to_numeric(table[value], errors="coerce").replace([inf, -inf], nan)
    if "status" in table:
        values = values.where(table["status"] == "done")
    flat = table[["condition", "seed"]].assign(value=values)
    wide = flat.pivot(index="seed", columns="condition", values="value")
    return wide[list(dict.fromkeys(table["condition"]))]


def _interval(
    values: NDArray[np.float64], largest: float | None = None
) -> tuple[float, float, float, float]:
    """Return mean, sd and the 95 % t-interval; what cannot be said is NaN.

    Values that differ by rounding only (of numbers as large as `largest`) have sd 0.
    """
    if len(values) < 2:
        return (float(values[0]) if len(values) else nan), nan, nan, nan
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    largest = float(np.abs(values).max()) if largest is None else largest
    if sd <= 1e-12 * largest:
        return mean if abs(mean) > 1e-12 * largest else 0.0, 0.0, nan, nan
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * sd / sqrt(len(values))
    return mean, sd, mean - half, mean + half


def _hedges(m: int) -> float:
    """Hedges' factor for m degrees of freedom; NaN for one, where it is not defined."""
    if m < 2:
        return nan
    return float(np.exp(gammaln(m / 2) - gammaln((m - 1) / 2)) / sqrt(m / 2))


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"

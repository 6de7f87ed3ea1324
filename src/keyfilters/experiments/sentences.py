"""What a comparison supports, in one sentence of a fixed template, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import Any

import pandas as pd

from keyfilters.experiments.comparison import CLAIM, TREND

__all__ = ["headline", "sentence"]

SHOWN = 6  # claims named in the headline
Label = Callable[[Mapping[str, Any]], str]

TEMPLATES = {
    "few": "{one} and {other}: too few to say ({n}; at least {least} are needed).",
    "untested": "{one} − {other}: {estimate} ({interval}, {n}); not tested.",
    "higher": "{trend}{one} is above {other} by {size} ({interval}, {n}, {p}).",
    "lower": "{trend}{one} is below {other} by {size} ({interval}, {n}, {p}).",
    "equal": "{trend}{one} equals {other} within {margin}: {estimate} "
    "({interval}, {n}, {p_equal}).",
    "open": "No difference established between {one} and {other}: {estimate} "
    "({interval}, {n}, {p}).",
}
SLOPES = {
    "higher": "{trend}The difference of {one} and {other} grows by {size} ({interval}, {n}, {p}).",
    "lower": "{trend}The difference of {one} and {other} falls by {size} ({interval}, {n}, {p}).",
    "open": "No change established in the difference of {one} and {other}: "
    "{estimate} ({interval}, {n}, {p}).",
}
ASSOCIATIONS = {
    "higher": "{one} goes with {other}: rank correlation {estimate} ({interval}, {n}, {p}).",
    "lower": "{one} goes against {other}: rank correlation {estimate} ({interval}, {n}, {p}).",
    "open": "No association established between {one} and {other}: rank correlation {estimate} "
    "({interval}, {n}, {p}).",
}
OF_KIND = {"difference": TEMPLATES, "slope": TEMPLATES | SLOPES}
OF_KIND["association"] = TEMPLATES | ASSOCIATIONS


def sentence(comparison: Mapping[Any, Any], label: Label) -> str:
    """Say in one sentence what a row of `compare` supports.

    Args:
        comparison: the row.
        label: returns the name of a row of factors.

    >>> row = {"kind": "difference", "condition": {"x": "A"}, "reference": {"x": "B"}, "seeds": 5,
    ...        "missing": 0, "estimate": 1.3, "low": 0.6, "high": 2.0, "p_holm": 0.004, "tests": 3,
    ...        "p_equal_holm": float("nan"), "margin": float("nan"), "unit": "points",
    ...        "verdict": "higher"}
    >>> sentence(row, lambda levels: levels["x"])
    'A is above B by 1.3 points (95 % interval 0.6 to 2.0, 5 seeds, p = 0.004 of 3).'
    """
    row = dict(comparison)
    association = row["kind"] == "association"
    digits = 2 if row["kind"] != "difference" else 1
    unit = f" {row['unit']}"
    few = row["seeds"] < CLAIM and not association
    counted = f"{row['seeds']} {'conditions' if association else 'seeds'}"
    return OF_KIND[row["kind"]][row["verdict"]].format(
        one=label(row["condition"]),
        other=label(row["reference"]),
        n=counted + (f", {row['missing']} left out" if row["missing"] else ""),
        least=6 if association else TREND,
        trend="Trend: " if few else "",
        estimate=_number(row["estimate"], digits, unit),
        size=_number(abs(row["estimate"]), digits, unit),
        interval=f"95 % interval {_number(row['low'], digits)} to {_number(row['high'], digits)}",
        p=_p(row["p_holm"], row["tests"]),
        p_equal=_p(row["p_equal_holm"], row["tests"]),
        margin=_number(row["margin"], digits, unit),
    )


def headline(comparisons: pd.DataFrame, label: Label, shown: int = SHOWN) -> str:
    """Say how many comparisons of a page support a claim, and name the first of them."""
    claimed = comparisons[comparisons["verdict"].isin(["higher", "lower", "equal"])]
    total = int(comparisons["verdict"].isin(["higher", "lower", "equal", "open"]).sum())
    if not total:
        return f"Too few seeds to compare: at least {TREND} are needed."
    if claimed.empty:
        return f"None of {total} comparisons establishes a difference or an equality."
    told = [sentence(row, label) for row in claimed.head(shown).to_dict("records")]
    more = f" {len(claimed) - shown} more stand below." if len(claimed) > shown else ""
    return f"{len(claimed)} of {total} comparisons establish something. {' '.join(told)}{more}"


def _number(value: float, digits: int, unit: str = "") -> str:
    """Write a number with the true minus sign; "–" for NaN."""
    if isnan(value):
        return "–"
    value = 0.0 if round(value, digits) == 0 else value
    return f"{value:.{digits}f}{unit.rstrip()}".replace("-", "−")


def _p(value: float, tests: int) -> str:
    written = "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
    return f"{written} of {tests}"

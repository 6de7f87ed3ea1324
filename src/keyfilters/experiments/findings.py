"""What an experiment found, in numbers and in sentences: what its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.experiments.statistics import CLAIM, LEVEL, TREND, compare, sentence, summarise

__all__ = ["Findings", "in_short", "table_of", "verdicts"]

SHOWN = 6  # differences named in short


@dataclass(frozen=True, eq=False)
class Findings:
    """What an experiment found.

    Attributes:
        title: of the experiment.
        explanation: one paragraph for someone who has not read the papers.
        short: the result in one or two sentences.
        answers: (question, the sentence that the numbers support), …
        measure: what was measured, with its unit.
        table: one row a run, as of `keyfilters.experiments.run_grid`.
        conditions: mean and interval of each condition, as of `summarise`.
        comparisons: all that were tested together, as of `compare`.
        curves: condition → ``(seeds, epochs)``.
        matrices: (table of numbers, what a cell says), …
    """

    title: str
    explanation: str
    short: str
    answers: Sequence[tuple[str, str]]
    measure: str
    table: pd.DataFrame
    conditions: pd.DataFrame
    comparisons: pd.DataFrame
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    matrices: Sequence[tuple[pd.DataFrame, str]] = ()


def verdicts(
    comparisons: pd.DataFrame, *, unit: str = "points", higher_is_better: bool = True
) -> dict[tuple[str, str], str]:
    """Return the `sentence` of each comparison, by the two conditions."""
    return {
        (row["condition"], row["reference"]): sentence(
            row, unit=unit, higher_is_better=higher_is_better
        )
        for row in comparisons.to_dict("records")
    }


def table_of(
    table: pd.DataFrame, value: str, pairs: Sequence[tuple[str, str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `summarise` of all conditions, and `compare` of those pairs that have run."""
    known = set(table["condition"])
    asked = [pair for pair in dict.fromkeys(pairs) if set(pair) <= known]
    return summarise(table, value), compare(table, value, pairs=asked)


def in_short(comparisons: pd.DataFrame) -> str:
    """Say how many comparisons of accuracies show a difference, and which ones.

    >>> row = {"condition": "new", "reference": "old", "seeds": 5, "difference": -2.0}
    >>> in_short(pd.DataFrame([{**row, "p_holm": 0.01}, {**row, "p_holm": 0.4}]))
    '1 of 2 comparisons shows a difference beyond chance: old beats new by 2.0 points.'
    """
    total = len(comparisons)
    clear = comparisons[(comparisons["p_holm"] < LEVEL) & (comparisons["seeds"] >= TREND)]
    if clear.empty:
        return f"None of {total} comparisons shows a difference beyond chance."
    found = []
    for row in clear.to_dict("records"):
        better, worse = row["condition"], row["reference"]
        if row["difference"] < 0:
            better, worse = worse, better
        found.append(f"{better} beats {worse} by {abs(row['difference']):.1f} points")
    trend = "" if (clear["seeds"] >= CLAIM).all() else " (a trend: a claim needs 5 seeds)"
    shows = "shows" if len(clear) == 1 else "show"
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{len(clear)} of {total} comparisons {shows} a difference beyond chance{trend}: "
        f"{'; '.join(found[:SHOWN])}{more}."
    )

"""What an experiment found, in numbers and in sentences: what its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.statistics import (
    CLAIM,
    LEVEL,
    TREND,
    compare,
    match_sentence,
    sentence,
)

__all__ = ["Axis", "Findings", "Question", "answered", "in_short"]

SHOWN = 6  # differences named in short


class Axis(NamedTuple):
    """What a chart is drawn over.

    Attributes:
        name: of the axis.
        at: places of the points on it.
        measure: what is drawn; that of the findings if empty.
    """

    name: str
    at: Sequence[float]
    measure: str = ""


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
        comparisons: as of `compare`, each with its question, within which p is corrected.
        curves: panel → name of a condition there → ``(seeds, epochs)``, or places on its axis.
        axes: panel → what it is drawn over, where that is not the epochs.
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
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    matrices: Sequence[tuple[pd.DataFrame, str]] = ()


@dataclass(frozen=True)
class Question:
    """A question, and the comparisons of accuracies that answer it.

    Attributes:
        words: the question.
        pairs: (condition, the one it is compared with), …; p-values are corrected for their number.
        margin: difference in points within which the two count as equal, if that is the question.
    """

    words: str
    pairs: Sequence[tuple[str, str]]
    margin: float | None = None


def answered(
    table: pd.DataFrame, value: str, questions: Sequence[Question], beats: str = "beats"
) -> tuple[pd.DataFrame, list[tuple[Question, str]]]:
    """Answer questions from a table of runs.

    Args:
        table: as of `keyfilters.experiments.run_grid`.
        value: the column that is compared, in points.
        questions: those whose conditions have not run are left out.
        beats: as of `sentence`.

    Returns:
        All comparisons, with the question of each; and the questions, with those pairs that have
        run, beside their answers.
    """
    known = set(table["condition"])
    tables, answers = [], []
    for question in questions:
        pairs = [pair for pair in question.pairs if set(pair) <= known]
        if not pairs:
            continue
        found = compare(table, value, pairs=pairs)
        tables.append(found.assign(question=question.words))
        told = []
        for row in found.to_dict("records"):
            margin = question.margin
            told.append(
                sentence(row, beats=beats) if margin is None else match_sentence(row, margin)
            )
        answers.append((replace(question, pairs=pairs), " ".join(told)))
    if not tables:
        raise KeyFiltersError("no two conditions of the table are compared; run more of them")
    return pd.concat(tables, ignore_index=True), answers


def in_short(comparisons: pd.DataFrame, named: int = SHOWN) -> str:
    """Say how many comparisons of accuracies show a difference, and which ones.

    Args:
        comparisons: as of `compare`.
        named: how many are named at most.

    >>> row = {"condition": "new", "reference": "old", "seeds": 5, "difference": -2.0}
    >>> in_short(pd.DataFrame([{**row, "p_holm": 0.01}, {**row, "p_holm": 0.4}]))
    '1 of 2 comparisons shows a difference beyond chance: old beats new by 2.0 points.'
    """
    comparisons = comparisons[comparisons["seeds"] >= TREND]
    total = len(comparisons)
    if not total:
        return f"Too few seeds to compare: at least {TREND} are needed."
    clear = comparisons[comparisons["p_holm"] < LEVEL]
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
    told = f"{len(clear)} of {total} comparisons {shows} a difference beyond chance{trend}"
    more = f"; and {len(found) - named} more" if len(found) > named else ""
    return f"{told}: {'; '.join(found[:named])}{more}." if named else f"{told}."

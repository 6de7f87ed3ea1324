"""The questions of an experiment, as contrasts of factor levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Association", "Contrast", "Question", "Trend"]

TOP1 = "top1"


@dataclass(frozen=True)
class Contrast:
    """Does a measure differ between levels of factors, all other factors alike?

    Every condition that has the levels `one` is compared, seed by seed, with the condition of the
    same row but for the levels `other`.

    Attributes:
        words: the question.
        one: factor → level.
        other: factor → level.
        value: the result that is compared.
        other_value: of the other condition, if that is another result.
        margin: difference within which the two count as equal, if that is the question too.
        unit: of the values.
        claim: whether its p-values count among the claims of the page; else it only describes.
    """

    words: str
    one: Mapping[str, Any]
    other: Mapping[str, Any]
    value: str = TOP1
    other_value: str = ""
    margin: float | None = None
    unit: str = "points"
    claim: bool = True


@dataclass(frozen=True)
class Trend:
    """Does the difference of a `Contrast` change along a factor?

    A straight line is fitted to the differences seed by seed, and its slopes are tested.

    Attributes:
        words: the question.
        one: factor → level.
        other: factor → level.
        along: a factor of numbers.
        per: unit of that factor, such as ``"tap"``; ``"doubling"`` takes its logarithm to base 2.
        value: the result that is compared.
    """

    words: str
    one: Mapping[str, Any]
    other: Mapping[str, Any]
    along: str
    per: str
    value: str = TOP1
    unit: str = "points"


@dataclass(frozen=True)
class Association:
    """Do two results go together over the conditions?

    Ranks of the conditions' means are correlated (Spearman), since the runs of one condition are
    alike.

    Attributes:
        words: the question.
        one: a result.
        other: another result.
    """

    words: str
    one: str
    other: str = TOP1


Question = Contrast | Trend | Association

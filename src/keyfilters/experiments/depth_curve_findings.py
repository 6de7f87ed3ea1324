"""What the depth curves support, in sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.experiments.depth_curve import (
    BASE,
    KINDS,
    OTHER,
    RANDOM,
    SAME,
    condition_name,
)
from keyfilters.experiments.findings import Axis, Findings, Question, answered, in_short
from keyfilters.experiments.statistics import CLAIM, LEVEL, TREND, by_seed, summarise

__all__ = ["depth_curve_findings"]

EXPLANATION = (
    "The first n layers of a network for one task (B) come from a network that learned the same "
    "task (BnB) or another one (AnB), frozen, or trained on (+); all else starts anew "
    "(yosinski2014transferable). Where AnB falls below BnB, layers are special to their task; "
    "where BnB itself falls, layers no longer fit each other. If depthwise filters are general in "
    "all layers (babaiee2025masterkey), neither may happen, however large n. RnB are first random "
    "weights, frozen: what falls no further than they do is no sign of anything learned. Pointwise "
    "layers, which mix the channels, are the contrast."
)
MEASURE = "top-1 accuracy on the test images, %"
WORDS = {
    (SAME, False): "BnB: of the same task, frozen",
    (OTHER, False): "AnB: of the other task, frozen",
    (RANDOM, False): "RnB: first random ones, frozen",
    (SAME, True): "BnB+: of the same task, trained on",
    (OTHER, True): "AnB+: of the other task, trained on",
}


def depth_curve_findings(table: pd.DataFrame, out: str | os.PathLike[str]) -> Findings:
    """Say what a table of `keyfilters.experiments.depth_curve` supports.

    For depthwise and for pointwise layers: from which n on do frozen ones cost accuracy against a
    network that learns all, of the same task, of the other and at random; does A fall below B; do
    trained layers beat random ones; and does training on help?

    Args:
        table: as returned.
        out: unused; all findings take it.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    borrowed = table[table["options.n"].notna()]
    layers = list(dict.fromkeys(borrowed["options.layers"]))
    depths = {
        what: sorted(
            {int(n) for n in borrowed.loc[borrowed["options.layers"] == what, "options.n"]}
        )
        for what in layers
    }
    questions = [question for what in layers for question in _questions(what, depths[what])]
    comparisons, found = answered(table, "top1", questions)
    answers = []
    for question, answer in found:
        costs = question.words.startswith("From which")
        start = f"{_from_where(question, comparisons)} " if costs else ""
        answers.append((question.words, f"{start}{answer}"))
    wide = by_seed(table, "top1")
    panels = {f"{what} layers": _curves(wide, what, depths[what]) for what in layers}
    conditions = summarise(table, "top1")
    return Findings(
        title="From which layer on are filters special to their task?",
        explanation=EXPLANATION,
        short=" ".join([*_in_words(answers), in_short(comparisons, named=0)]),
        answers=answers,
        measure=MEASURE,
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves=panels,
        axes={
            f"{what} layers": Axis(f"n, first {what} layers from elsewhere", [0, *depths[what]])
            for what in layers
        },
        matrices=[(_matrix(conditions, what, depths[what]), f"Mean accuracy in %, {what} layers")
                  for what in layers],
    )  # fmt: skip


def _questions(what: str, depths: Sequence[int]) -> list[Question]:
    def pairs(one: tuple[str, bool], other: tuple[str, bool]) -> list[tuple[str, str]]:
        return [(condition_name(what, n, *one), condition_name(what, n, *other)) for n in depths]

    def costs(kind: str, whose: str) -> Question:
        words = f"From which n on do {whose} cost accuracy, frozen?"
        return Question(words, [(condition_name(what, n, kind), BASE) for n in depths])

    same, other, random = (SAME, False), (OTHER, False), (RANDOM, False)
    return [
        costs(OTHER, f"the first n {what} layers of another task"),
        costs(SAME, f"the first n {what} layers of the same task"),
        costs(RANDOM, f"n random first {what} layers"),
        Question(f"Do {what} layers of another task fall below those of the same?",
                 pairs(other, same)),
        Question(f"Do trained {what} layers, frozen, beat random ones?",
                 [*pairs(other, random), *pairs(same, random)]),
        Question(f"Do {what} layers that come from elsewhere and learn on give a gain?",
                 [(condition_name(what, n, kind, True), BASE) for kind in (SAME, OTHER)
                  for n in depths]),
    ]  # fmt: skip


def _from_where(question: Question, comparisons: pd.DataFrame) -> str:
    """Name the first n at which a loss is found."""
    rows = comparisons[comparisons["question"] == question.words]
    if (rows["seeds"] < TREND).any():
        return f"Too few seeds to say: at least {TREND} are needed."
    lost = (rows["p_holm"] < LEVEL) & (rows["difference"] < 0)
    trend = "Trend: at" if (rows["seeds"] < CLAIM).any() else "At"
    if not lost.any():
        bound = f"{max(0.0, -float(rows['low'].min())):.1f}"
        return f"{trend} no n is a loss found, and one beyond {bound} points would be unlikely."
    first = rows.loc[lost, "condition"].iloc[0]
    again = "" if lost[lost.idxmax() :].all() else ", though not at every larger n"
    return f"{trend} {first} a loss is first found{again}."


def _in_words(answers: Sequence[tuple[str, str]]) -> list[str]:
    return [
        f"{question} {answer.partition('. ')[0]}."
        for question, answer in answers
        if question.startswith("From which")
    ]


def _curves(wide: pd.DataFrame, what: str, depths: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Lines ``(seeds, 1 + n)``, from the network that learns all."""
    lines = {}
    for kind in KINDS:
        names = [BASE, *(condition_name(what, n, *kind) for n in depths)]
        if set(names) <= set(wide):
            lines[WORDS[kind]] = wide[names].to_numpy()
    return lines


def _matrix(conditions: pd.DataFrame, what: str, depths: Sequence[int]) -> pd.DataFrame:
    means = conditions.set_index("condition")["mean"]
    return pd.DataFrame(
        {
            f"n = {n}": [means.get(condition_name(what, n, *kind), np.nan) for kind in KINDS]
            for n in depths
        },
        index=pd.Index(list(WORDS.values()), name="layers"),
    )

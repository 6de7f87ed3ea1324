"""What the experiment on frozen keys supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import log2, nan

import pandas as pd

from keyfilters.experiments.findings import Findings, Question, answered, in_short
from keyfilters.experiments.frozen_keys import FIRST, LEARNED, condition_name
from keyfilters.experiments.on_keys import RANDOM, Treatment, alike, learning_pairs
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.statistics import slope_sentence, summarise

__all__ = ["frozen_keys_findings"]

EXPLANATION = (
    "A depthwise convolution looks at each channel with one small filter. Here these filters do "
    "not learn: each is one of a few keys times a factor, fixed from the first step to the last, "
    "plus a constant b that may be learned (babaiee2025quest). All else learns. If eight shapes "
    "are enough, such a network must reach one whose filters learn; if it is these shapes that "
    "count, eight random ones and the network's own random first filters must be worse. Keys are "
    "drawn for each channel, or those nearest to the filters of a network that learned the same."
)
MARGIN = 0.5  # points within which two accuracies count as equal


def frozen_keys_findings(
    table: pd.DataFrame, out: str | os.PathLike[str], *, margin: float = MARGIN
) -> Findings:
    """Say what a table of `keyfilters.experiments.frozen_keys` supports.

    For each number of training images: do networks on keys match learned filters; do they beat
    random keys used in the same way and frozen random first filters; does a learned b help; does it
    help to take the keys of a trained network? And does the gain over learned filters change with
    the number of images?

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.
        margin: points within which two accuracies count as equal.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    sizes = sorted({int(count) for count in table["options.samples"]})
    asked = list(dict.fromkeys(table["options.condition"]))
    on_keys = [name for name in asked if Treatment.parse(name).on_keys]
    questions = [question for size in sizes for question in _questions(size, asked, margin)]
    comparisons, found = answered(table, "top1", questions)
    answers = [(question.words, answer) for question, answer in found]
    for name in on_keys if len(sizes) > 1 and LEARNED in asked else ():
        pairs = [(condition_name(name, size), condition_name(LEARNED, size)) for size in sizes]
        words = (
            f"Does what {condition_name(name, 0)} give over learned ones change with the images?"
        )
        doublings = [log2(size) for size in sizes]
        answers.append((words, slope_sentence(table, "top1", pairs, doublings, "a doubling")))
    curves = read_curves(table, out, "curve")
    conditions = summarise(table, "top1")
    return Findings(
        title="Do eight frozen keys suffice?",
        explanation=EXPLANATION,
        short=" ".join([*_headlines(conditions, asked, sizes), in_short(comparisons, named=0)]),
        answers=answers,
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves={
            _panel(size): {
                condition_name(name, 0): curves[condition_name(name, size)]
                for name in asked
                if condition_name(name, size) in curves
            }
            for size in sizes
        },
        matrices=[(_by_size(conditions, asked, sizes), "Mean accuracy in %, by training images")],
    )


def _questions(size: int, asked: Sequence[str], margin: float) -> list[Question]:
    keys = [name for name in asked if Treatment.parse(name).on_keys or name == "idealized"]
    learning = learning_pairs(asked)
    nearest = [name for name in keys if Treatment.parse(name).nearest]

    def pairs(*each: tuple[str, str]) -> list[tuple[str, str]]:
        return [(condition_name(one, size), condition_name(other, size)) for one, other in each]

    where = f" from {size} images" if size else ""
    return [
        Question(
            f"Do networks on keys match learned filters{where}?",
            pairs(*((name, LEARNED) for name in keys)),
            margin,
        ),
        Question(
            f"Do the keys beat random ones used in the same way{where}?",
            pairs(*((name, x) for name in keys for x in alike(name, asked, keys=RANDOM))),
        ),
        Question(
            f"Do the keys beat frozen random first filters{where}?",
            pairs(*((name, FIRST) for name in keys)),
        ),
        Question(
            f"Does a learned b help, or σ{where}?",
            pairs(*learning),
        ),
        Question(
            f"Does it help to take keys, signs, a and b of a trained network{where}?",
            pairs(*((name, x) for name in nearest for x in alike(name, asked, drawn=True))),
        ),
        Question(
            f"Do learned filters beat frozen random first ones{where}?", pairs((LEARNED, FIRST))
        ),
    ]


def _headlines(conditions: pd.DataFrame, asked: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Tell the mean accuracies of each number of images: learned, on keys, and the controls."""
    means = conditions.set_index("condition")["mean"]
    groups = {
        "learned filters": [LEARNED],
        "keys": [name for name in asked if Treatment.parse(name).on_keys],
        "random keys": [name for name in asked if Treatment.parse(name).keys == RANDOM],
        "random first filters": [FIRST],
    }
    told = []
    for size in sizes:
        parts = []
        for words, names in groups.items():
            known = [means[x] for x in (condition_name(n, size) for n in names) if x in means]
            if known:
                low, high = (f"{value:.1f}" for value in (min(known), max(known)))
                parts.append(f"{words} {low if low == high else f'{low} to {high}'} %")
        told.append(f"{f'From {size} images' if size else 'Means'}: {', '.join(parts)}.")
    return told


def _panel(size: int) -> str:
    return f"{size} images" if size else ""


def _by_size(conditions: pd.DataFrame, asked: Sequence[str], sizes: Sequence[int]) -> pd.DataFrame:
    means = conditions.set_index("condition")["mean"]
    rows = {condition_name(name, 0): name for name in asked}
    return pd.DataFrame(
        {
            _panel(size) or "all images": [
                means.get(condition_name(name, size), nan) for name in rows.values()
            ]
            for size in sizes
        },
        index=pd.Index(list(rows), name="filters"),
    )

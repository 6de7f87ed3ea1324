"""What the experiment on initialisation supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.experiments.findings import Findings, Question, answered, in_short
from keyfilters.experiments.initialization import condition_name
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.statistics import (
    compare,
    epochs_to_reach,
    sentence,
    slope_sentence,
    summarise,
)
from keyfilters.query_strings import parse

__all__ = ["initialization_findings"]

EXPLANATION = (
    "A network of depthwise convolutions starts from random filters and learns edges, centres and "
    "bars. Does it learn better or faster if it starts from filters like those of the retina, "
    "bright centres with dark surrounds and the opposite (babaiee2024echos)? The same network is "
    "trained from several first filters; all else, the first weights of the other layers, the "
    "images and their order, is the same for runs of one seed. The schemes differ in the size of "
    "their filters too, so with std=keep each is also tried at the root mean square of the "
    "network's own first filters: these are compared among each other, and with the default."
)
REFERENCES = ("default", "kaiming", "trunc-normal", "covariance")  # what a gain must exceed
REACHED = 0.95  # of the final accuracy of the default


def initialization_findings(table: pd.DataFrame, out: str | os.PathLike[str]) -> Findings:
    """Say what a table of `keyfilters.experiments.initialization` supports.

    For each kernel size and each scheme that is no reference: does it beat the references of like
    scale in final accuracy, and in epochs until 95 % of the default's final accuracy; do the
    references differ from the default; and does a scheme's gain over it grow with the kernel?

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    sizes = sorted({int(size) for size in table["options.size"]})
    asked = list(dict.fromkeys(table["options.initialization"]))
    new = [name for name in asked if parse(name)[0] not in REFERENCES]
    questions = [
        Question(
            f"Does {name} beat other first filters at {size}×{size}?",
            [
                (condition_name(size, name), condition_name(size, other))
                for other in _references(name, asked)
            ],
        )
        for size in sizes
        for name in new
    ]
    others = [name for name in asked if name not in (*new, "default")]
    questions += [
        Question(
            f"Do other first filters differ from the default at {size}×{size}?",
            [(condition_name(size, name), condition_name(size, "default")) for name in others],
        )
        for size in sizes
    ]
    comparisons, found = answered(table, "top1", questions)
    curves = read_curves(table, out, "curve")
    marks, needed = _epochs_needed(table, curves)
    table = table.assign(epochs_needed=needed)
    answers = []
    for question, answer in found:
        answers.append(
            (question.words, f"{answer} {_sooner(table, question.pairs, marks)}".strip())
        )
    for name in new if len(sizes) > 1 and "default" in asked else ():
        words = f"Does the gain of {name} over the default grow with the kernel?"
        pairs = [(condition_name(k, name), condition_name(k, "default")) for k in sizes]
        answers.append((words, slope_sentence(table, "top1", pairs, sizes, "a tap")))
    return Findings(
        title="Does starting from biological filters help?",
        explanation=EXPLANATION,
        short=in_short(comparisons),
        answers=answers,
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=summarise(table, "top1"),
        comparisons=comparisons,
        curves={
            f"{size}×{size}": {
                name: curves[condition_name(size, name)]
                for name in asked
                if condition_name(size, name) in curves
            }
            for size in sizes
        },
        matrices=[
            (_by_size(table, "top1"), "Mean accuracy in %, by first filters and kernel size"),
            (_by_size(table, "rms"), "Root mean square of the first filters, median over layers"),
        ],
    )


def _references(name: str, asked: Sequence[str]) -> list[str]:
    """References of like scale: the default, and those with the same std."""
    std = parse(name)[1].get("std")
    return [
        other
        for other in asked
        if parse(other)[0] in REFERENCES
        and (other == "default" or parse(other)[1].get("std") == std)
    ]


def _by_size(table: pd.DataFrame, value: str) -> pd.DataFrame:
    means = table.pivot_table(
        value, "options.initialization", "options.size", aggfunc="mean", sort=False
    )
    means.columns = [f"{size}×{size}" for size in means.columns]
    return means.rename_axis(index="first filters")


def _epochs_needed(
    table: pd.DataFrame, curves: Mapping[str, NDArray[np.float64]]
) -> tuple[dict[int, float], NDArray[np.float64]]:
    """The mark of every kernel size, and the epochs of every run until it; infinite if never."""
    marks: dict[int, float] = {}
    needed = np.full(len(table), nan)
    for size in sorted(set(table["options.size"])):
        default = curves.get(condition_name(size, "default"))
        if default is None:
            continue
        marks[size] = REACHED * float(np.nanmean(default[:, -1]))
        for condition, runs in curves.items():
            rows = (table["condition"] == condition) & (table["options.size"] == size)
            rows &= table["status"] == "done"
            if rows.any():
                epochs = epochs_to_reach(runs, marks[size])
                needed[rows.to_numpy()] = np.where(np.isnan(epochs), np.inf, epochs)
    return marks, needed


def _sooner(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], marks: Mapping[int, float]
) -> str:
    """Say which conditions of a question reached the mark sooner, or in which not all runs did."""
    part = table[
        (table["status"] == "done") & table["condition"].isin({x for p in pairs for x in p})
    ]
    mark = marks.get(int(part["options.size"].iloc[0]))
    if mark is None:
        return ""
    reached = np.isfinite(part["epochs_needed"]).groupby(part["condition"]).agg(["sum", "size"])
    late = [
        f"{condition} in {row['sum']} of {row['size']} seeds"
        for condition, row in reached.iterrows()
        if row["sum"] < row["size"]
    ]
    told = [f"{mark:.1f} % was reached by {', by '.join(late)} only."] if late else []
    tested = [pair for pair in pairs if all(reached["sum"][x] == reached["size"][x] for x in pair)]
    if tested:
        found = compare(part, "epochs_needed", pairs=tested)
        told.append(f"Epochs to {mark:.1f} %:")
        told += [
            sentence(row, unit="epochs", higher_is_better=False) for row in found.to_dict("records")
        ]
    return " ".join(told)

"""What the experiment on transfer supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, nan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.experiments.findings import Findings, Question, answered, in_short
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.statistics import LEVEL, summarise
from keyfilters.experiments.transfer import (
    AS_IS,
    CONTROLS,
    OWN,
    POINTWISE,
    condition_name,
    family,
    trained_here,
)
from keyfilters.query_strings import parse

__all__ = ["transfer_findings"]

EXPLANATION = (
    "A depthwise convolution looks at each channel with one small filter; the layers between mix "
    "the channels. If such filters are general (babaiee2025masterkey), a network can take them "
    "from another network that learned something else, keep them frozen, and learn the rest. If "
    "it is their shapes that count, frozen random filters, single taps and the same filters with "
    "shuffled taps must be worse. Shuffled channels keep all shapes: if that is no worse, it does "
    "not matter which channel has which filter. Batch normalisation learns in every run. As "
    "contrast the pointwise filters, that mix the channels, are frozen in the same way."
)
MARGIN = 1.0  # points within which two accuracies count as equal
WORDS = {
    "random": "random ones",
    "impulse": "single taps",
    "tap-shuffled": "the same with shuffled taps",
}


def transfer_findings(
    table: pd.DataFrame, out: str | os.PathLike[str], *, margin: float = MARGIN
) -> Findings:
    """Say what a table of `keyfilters.experiments.transfer` supports.

    For each target: does learning the filters beat freezing the random first ones? For each source:
    do its frozen filters match learned ones, do they beat random ones, single taps and shuffled
    taps, does it matter which channel has which; do its pointwise filters match and beat random
    ones; and does the larger of two sources that differ in their samples only serve better?

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.
        margin: points within which two accuracies count as equal.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    frozen = table[table["options.kind"].notna()]
    sources = [x for x in dict.fromkeys(frozen["options.source"]) if isinstance(x, str) and x]
    targets = list(dict.fromkeys(frozen["options.data"]))
    questions = [
        question
        for target in targets
        for source in sources
        for question in _questions(target, source, margin)
    ]
    for target in targets:
        pair = (condition_name(target, "learned"), condition_name(target, OWN))
        words = f"On {target}, does learning the filters beat freezing the random first ones?"
        questions.append(Question(words, [pair]))
        for small, large in _growing(sources):
            pair = (condition_name(target, AS_IS, large), condition_name(target, AS_IS, small))
            words = f"On {target}, does the larger source {large} serve better than {small}?"
            questions.append(Question(words, [pair]))
    comparisons, answers = answered(table, "top1", questions)
    conditions = summarise(table, "top1")
    curves = read_curves(table, out, "curve")
    found = Findings(
        title="Do the filters of other networks serve?",
        explanation=EXPLANATION,
        short=f"{in_short(comparisons)} {_shapes(comparisons, targets, sources)}".strip(),
        answers=[(question.words, answer) for question, answer in answers],
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves={target: _curves(target, sources, curves) for target in targets},
        matrices=[
            (_matrix(conditions, targets, sources), "Mean accuracy in %, by filters and target")
        ],
    )
    return found if len(targets) > 1 else _without(found, f"{targets[0]}: ")


def _without(found: Findings, prefix: str) -> Findings:
    """Leave out what begins the name of every condition."""

    def shortened(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
        return table.assign(**{c: table[c].str.replace(prefix, "", regex=False) for c in columns})

    return replace(
        found,
        short=found.short.replace(prefix, ""),
        answers=[(question, answer.replace(prefix, "")) for question, answer in found.answers],
        table=shortened(found.table, "condition"),
        conditions=shortened(found.conditions, "condition"),
        comparisons=shortened(found.comparisons, "condition", "reference"),
    )


def _questions(target: str, source: str, margin: float) -> list[Question]:
    own, learned = condition_name(target, AS_IS, source), condition_name(target, "learned")
    shapes = [(own, condition_name(target, kind, source)) for kind in WORDS]
    first = condition_name(target, OWN)
    channels = condition_name(target, "channel-shuffled", source)
    mixing = condition_name(target, POINTWISE, source)
    others = f"{', '.join(WORDS.values())}, and the network's own first ones"
    return [
        Question(
            f"On {target}, do frozen filters of {source} match learned ones?",
            [(own, learned)],
            margin,
        ),
        Question(
            f"On {target}, do frozen filters of {source} beat {others}?", [*shapes, (own, first)]
        ),
        Question(
            f"On {target}, does it matter which channel has which filter of {source}?",
            [(own, channels)],
        ),
        Question(
            f"On {target}, do frozen pointwise filters of {source} match learned ones?",
            [(mixing, learned)],
            margin,
        ),
        Question(
            f"On {target}, do frozen pointwise filters of {source} beat random ones?",
            [(mixing, condition_name(target, f"{OWN} {POINTWISE}"))],
        ),
    ]


def _growing(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (smaller, next larger) of sources that differ in their samples only."""
    families: dict[str, list[tuple[float, str]]] = {}
    for source in filter(trained_here, sources):
        samples = parse(source)[1].get("samples", 0) or inf  # 0 takes all
        families.setdefault(family(source), []).append((samples, source))
    return [
        (small, large)
        for members in families.values()
        for (_, small), (_, large) in pairwise(sorted(members))
    ]


def _shapes(comparisons: pd.DataFrame, targets: Sequence[str], sources: Sequence[str]) -> str:
    """Say so if no filters of a source were found to beat random ones."""
    pairs = {
        (condition_name(target, AS_IS, source), condition_name(target, "random", source))
        for target in targets
        for source in sources
    }
    rows = zip(comparisons["condition"], comparisons["reference"], strict=True)
    tested = comparisons[[pair in pairs for pair in rows]]
    if tested.empty or ((tested["p_holm"] < LEVEL) & (tested["difference"] > 0)).any():
        return ""
    return "Nowhere were trained filters found to beat random ones: no sign that shapes count here."


def _curves(
    target: str, sources: Sequence[str], curves: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Learning curves without the controls of single sources, which would hide the rest."""
    rows = {"learned": ("learned", ""), "own first, frozen": (OWN, "")}
    rows |= {f"of {source}, frozen": (AS_IS, source) for source in sources}
    names = {label: condition_name(target, *row) for label, row in rows.items()}
    return {label: curves[name] for label, name in names.items() if name in curves}


def _matrix(
    conditions: pd.DataFrame, targets: Sequence[str], sources: Sequence[str]
) -> pd.DataFrame:
    means = conditions.set_index("condition")["mean"]
    rows = {"learned": ("learned", ""), "own first, frozen": (OWN, "")}
    for source in sources:
        rows |= {source: (AS_IS, source)}
        rows |= {f"{source}, {control}": (control, source) for control in CONTROLS}
    return pd.DataFrame(
        {t: [means.get(condition_name(t, *row), nan) for row in rows.values()] for t in targets},
        index=pd.Index(list(rows), name="filters of"),
    )

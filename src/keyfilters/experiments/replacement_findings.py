"""What the experiment on replacement and fine-tuning supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from keyfilters.experiments.findings import Findings, Question, answered, in_short
from keyfilters.experiments.on_keys import RANDOM, Treatment, alike, learning_pairs
from keyfilters.experiments.replacement import EARLY, LEARNED, TRAINED, condition_name
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.statistics import summarise

__all__ = ["replacement_findings"]

EXPLANATION = (
    "A network is trained. Then every depthwise filter is replaced by the nearest of a few keys, "
    "times a factor a, plus a constant b, and stays so while the rest is tuned "
    "(lindeberg2026modelling). If the keys hold what the filters do, little is lost before tuning "
    "and nothing after it. Random keys must do worse (the nearest of them also keep less of a "
    "filter's size), and filters kept as they are say what tuning itself brings. The paper writes "
    "keys, a and b of the fully trained network into an early checkpoint and trains from there: "
    "that is done here too, beside keys nearest to the filters of the early checkpoint itself, "
    "which needs no trained network."
)
KEPT, BEFORE = "frozen", "before tuning: "
MARGIN = 0.5  # points within which two accuracies count as equal


def replacement_findings(
    table: pd.DataFrame, out: str | os.PathLike[str], *, margin: float = MARGIN
) -> Findings:
    """Say what a table of `keyfilters.experiments.replacement` supports.

    Do tuned networks on keys match those tuned with their own filters kept, do they beat random
    keys, before and after tuning; do a learned b or σ close the gap; and from an early checkpoint:
    do networks on keys match one that goes on learning, does it matter whose filters chose the
    keys, and do they beat random and drawn ones?

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.
        margin: points within which two accuracies count as equal.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    treated = table[table["options.treatment"].notna()]
    starts = treated["options.start"]
    tuned = list(dict.fromkeys(treated.loc[starts == TRAINED, "options.treatment"]))
    begun = list(dict.fromkeys(treated.loc[starts == EARLY, "options.treatment"]))
    comparisons, found = answered(
        table, "top1", [*_tuned_questions(tuned, margin), *_early_questions(begun, margin)]
    )
    answers = [(question.words, answer) for question, answer in found]
    short = in_short(comparisons)
    fixed = [name for name in tuned if not Treatment.parse(name).learn]  # nothing has learned yet
    pairs = [(_untuned(x), _untuned(y)) for x in fixed for y in alike(x, tuned, keys=RANDOM)]
    if pairs:
        renamed = table["condition"].str.replace("tuned: ", BEFORE, regex=False)
        words = "Before any tuning, do the keys beat random ones?"
        early, told = answered(table.assign(condition=renamed), "before", [Question(words, pairs)])
        answers += [(question.words, answer) for question, answer in told]
        comparisons = pd.concat([comparisons, early], ignore_index=True)
    conditions = summarise(table, "top1")
    before = summarise(table, "before").set_index("condition")["mean"]
    after = conditions.set_index("condition")["mean"]
    curves = read_curves(table, out, "curve")
    return Findings(
        title="What does fine-tuning bring back after filters became keys?",
        explanation=EXPLANATION,
        short=f"{_headline(after, before, tuned)} {short}",
        answers=answers,
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves={
            "from the trained network": {
                name.partition(": ")[2]: x for name, x in curves.items() if "tuned" in name
            },
            f"from the {EARLY} checkpoint": {
                name.removeprefix("from "): x for name, x in curves.items() if "from" in name
            },
        },
        matrices=[
            (
                pd.DataFrame({"before tuning": before, "after tuning": after}).loc[
                    list(after.index)
                ],
                "Mean accuracy in %",
            )
        ],
    )


def _tuned(treatment: str) -> str:
    return condition_name(treatment, TRAINED, TRAINED)


def _untuned(treatment: str) -> str:
    return _tuned(treatment).replace("tuned: ", BEFORE)


def _headline(after: pd.Series, before: pd.Series, tuned: Sequence[str]) -> str:
    """Tell the mean accuracies of the trained network, on keys and on random keys."""
    groups = {
        "on keys": [x for x in tuned if Treatment.parse(x).on_keys],
        "on random keys": [x for x in tuned if Treatment.parse(x).keys == RANDOM],
        "on their own idealised models": [x for x in tuned if x == "idealized"],
        "with filters kept": [x for x in tuned if x == KEPT],
    }
    told = [f"trained {after[TRAINED]:.1f} %"] if TRAINED in after else []
    for words, names in groups.items():
        if names:
            ends = [
                f"{low:.1f}" + f" to {high:.1f}" * (low != high)
                for values in (before, after)
                for low, high in [(values[list(map(_tuned, names))].agg(["min", "max"]))]
            ]
            told.append(f"{words} {ends[0]} before and {ends[1]} % after tuning")
    return f"Means: {', '.join(told)}."


def _tuned_questions(asked: Sequence[str], margin: float) -> list[Question]:
    keys = [name for name in asked if Treatment.parse(name).on_keys]
    shapes = [name for name in asked if Treatment.parse(name).fitted]
    learning = [(_tuned(one), _tuned(other)) for one, other in learning_pairs(asked)]
    return [
        Question(
            "After tuning, do networks on keys match those that kept their filters?",
            [(_tuned(name), _tuned(KEPT)) for name in shapes],
            margin,
        ),
        Question(
            "After tuning, do the keys beat random ones used in the same way?",
            [(_tuned(name), _tuned(x)) for name in keys for x in alike(name, asked, keys=RANDOM)],
        ),
        Question("Does a learned b or σ help after the replacement?", learning),
        Question(
            "Is it better to keep the filters frozen than to let them learn on?",
            [(_tuned(KEPT), _tuned(LEARNED))],
        ),
    ]


def _early_questions(asked: Sequence[str], margin: float) -> list[Question]:
    nearest = [name for name in asked if Treatment.parse(name).fitted]
    on = condition_name(LEARNED, EARLY, EARLY)

    def name(treatment: str, assigned: str) -> str:
        return condition_name(treatment, EARLY, assigned)

    def controls(treatment: str, by: str) -> list[tuple[str, str]]:
        random = [name(x, by) for x in alike(treatment, asked, keys=RANDOM)]
        drawn = [name(x, EARLY) for x in alike(treatment, asked, drawn=True)]
        return [(name(treatment, by), other) for other in (*random, *drawn)]

    return [
        Question(
            "From an early checkpoint, do networks on keys match one that goes on learning?",
            [(name(x, by), on) for x in nearest for by in (TRAINED, EARLY)],
            margin,
        ),
        Question(
            "From an early checkpoint, does it take the trained network to choose the keys?",
            [(name(x, TRAINED), name(x, EARLY)) for x in nearest],
        ),
        Question(
            "From an early checkpoint, do the keys beat random ones and drawn ones?",
            [pair for x in nearest for by in (TRAINED, EARLY) for pair in controls(x, by)],
        ),
    ]

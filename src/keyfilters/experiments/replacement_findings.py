"""What the experiment on replacement and fine-tuning supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from keyfilters.experiments.findings import Findings, Question, answered, in_short
from keyfilters.experiments.on_keys import RANDOM, Treatment, alike
from keyfilters.experiments.replacement import EARLY, LEARNED, TRAINED, condition_name
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.statistics import summarise

__all__ = ["replacement_findings"]

EXPLANATION = (
    "A network is trained. Then every depthwise filter is replaced by the nearest of a few keys, "
    "times a factor a, plus a constant b, and stays so while the rest is tuned "
    "(lindeberg2026modelling). If the keys hold what the filters do, little is lost before tuning "
    "and nothing after it; random keys must do worse, and filters kept as they are say what tuning "
    "itself brings. The paper writes keys, a and b of the fully trained network into an early "
    "checkpoint and trains from there: that is done here too, beside keys nearest to the filters "
    "of the early checkpoint itself, which needs no trained network."
)
KEPT = "frozen"
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
    pairs = [(_tuned(x), _tuned(y)) for x in tuned for y in alike(x, tuned, keys=RANDOM)]
    frozen = [pair for pair in pairs if "learned" not in pair[0]]  # nothing has been learned yet
    if frozen:
        words = "Before any tuning, do the keys beat random ones?"
        early, told = answered(table, "before", [Question(words, frozen)])
        answers += [(question.words, answer) for question, answer in told]
        comparisons = pd.concat([comparisons, early], ignore_index=True)
    conditions = summarise(table, "top1")
    before = summarise(table, "before").set_index("condition")["mean"]
    after = conditions.set_index("condition")["mean"]
    curves = read_curves(table, out, "curve")
    return Findings(
        title="What does fine-tuning bring back after filters became keys?",
        explanation=EXPLANATION,
        short=in_short(comparisons),
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


def _tuned_questions(asked: Sequence[str], margin: float) -> list[Question]:
    keys = [name for name in asked if Treatment.parse(name).on_keys]
    shapes = [*keys, *(name for name in asked if name == "idealized")]
    learning = [
        (_tuned(name), _tuned(other))
        for name in asked
        if Treatment.parse(name).learn
        for other in alike(name, asked, learn=())
    ]
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
    keys = [name for name in asked if Treatment.parse(name).on_keys]
    nearest = [name for name in keys if Treatment.parse(name).nearest]
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

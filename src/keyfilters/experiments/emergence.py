"""When do the patterns appear, and do they tell good training from bad?

Small networks are trained well and badly. For each saved step: the share of filters explained by
one receptive field, and of their variance by the eight keys, beside noise of the same covariance
and beside random keys (a question of babaiee2024unveiling's reviewers).
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Any

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Association, Contrast, Question
from keyfilters.query_strings import parse

__all__ = ["QUALITIES", "emergence", "kept_steps"]

QUALITIES = (
    *("usual", "std=0.02", "width=8", "steps=0.1", "samples=0.1", "noise=0.4", "noise=1"),
    *("lr=0.0001", "lr=0.3"),
)
FACTORS = ("width", "depth", "lr", "weight_decay", "std", "steps", "samples", "noise")
SHARES = ("samples", "noise")
MEASURES = "keyfilters.experiments.filter_measures"
DEFAULTS = Shared(size=7)
EXPLANATION = (
    "Trained depthwise filters look like edges, centres and bars. When in training do these "
    "patterns appear, and does their share tell good training from bad (a question that the "
    "reviewers of babaiee2024unveiling asked)? The same small network is trained as usual and in "
    "ways that make it worse: too few steps or images, wrong labels, a learning rate that is too "
    "small or too large. For each saved step: how many filters one idealised receptive field "
    "explains, minus how many of Gaussian filters with the same covariance (beyond), and how much "
    "of the filters' variance the eight idealised keys explain, minus what eight random ones do "
    "(keys_beyond)."
)


def emergence(
    shared: Shared = DEFAULTS,
    *,
    data: Annotated[str, DATA_HELP] = "digits",
    quality: Annotated[
        tuple[str, ...],
        "usual, or changes to it such as noise=0.4&steps=0.5 (also width, depth, lr, "
        "weight_decay, std, samples).",
    ] = QUALITIES,
) -> Experiment:
    """When in training do the patterns appear, and do they tell good training from bad?

    Trains networks well and badly, and measures at saved steps how many of their filters are
    explained; makes an atlas of all that were kept.
    """
    from keyfilters.experiments.run import Run
    from keyfilters.experiments.run_parts import step_count
    from keyfilters.experiments.single_run import make_run

    rows = [_factors(text) for text in quality]
    if parse(shared.network)[0] != "convmixer":
        if quality != QUALITIES and any(row["width"] or row["depth"] for row in rows):
            raise KeyFiltersError(
                f"width and depth are those of convmixer, which {shared.network} is not; name "
                "--quality without them"
            )
        rows = [row for row in rows if not row["width"] and not row["depth"]]
    base = shared.options(data=data)
    usual_steps = step_count(base)
    runs = []
    for seed in shared.all_seeds:
        for row in rows:
            given = {k: x for k, x in row.items() if x is not None}
            rates = {k: given.pop(k) for k in ("lr", "weight_decay") if k in given}
            steps = max(1, round(usual_steps * given.pop("steps", 1)))
            changes: dict[str, Any] = {"schedule": {"steps": steps}, "optimiser": rates}
            options = {**base, **given, "changes": changes, "keep": kept_steps(steps)}
            runs.append(make_run(row, seed, {**options, "measure": f"{MEASURES}:explained"}))
    extra = {}
    for row in rows:
        if all(x is None for name, x in row.items() if name != "std"):
            kept = {f"seed-{run.seed}": run for run in runs if run.factors == row}
            title = "Patterns" + (f", std {row['std']:g}" if row["std"] else "")
            extra[title] = Run(row, shared.seed, f"{MEASURES}:patterns_by_step", {}, kept)
    return Experiment(
        name="emergence",
        title="When do the patterns appear, and do they tell good training from bad?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions(rows),
        panels=[
            Panel(words, f"{name}_on_the_way", "optimiser step", "steps")
            for name, words in (
                ("beyond", "% of filters explained, beyond noise of the same covariance"),
                ("keys_beyond", "% of variance explained by the eight keys, beyond random ones"),
                ("accuracy", "top-1 accuracy, %"),
            )
        ],
        columns=("explained", "shuffled", "covariance", "keys", "random_keys"),
        extra=extra,
    )


def _factors(quality: str) -> dict[str, Any]:
    """Return what a quality changes, as a row of factors; None is as usual."""
    changed = {} if quality == "usual" else parse(f"?{quality}")[1]
    for name, value in changed.items():
        if name not in FACTORS:
            known = f"{', '.join(FACTORS)} are known{nearest(name, FACTORS)}"
            raise KeyFiltersError(f"{quality!r}: {name!r} cannot be changed; {known}")
        most = 1 if name in SHARES else inf
        if not isinstance(value, int | float) or not 0 < value <= most:
            expected = "above 0" + (" and at most 1" if name in SHARES else "")
            raise KeyFiltersError(f"{quality!r}: {name} is {value!r}; a number {expected} expected")
    return {name: changed.get(name) for name in FACTORS}


def _questions(rows: list[dict[str, Any]]) -> list[Question]:
    usual = dict.fromkeys(FACTORS)
    questions: list[Question] = [
        Contrast("Do the patterns appear later in training than the accuracy?", usual, usual,
                 "beyond_half", "accuracy_half", unit="steps"),
        *(Association("Does what is explained go with the accuracy?", name)
          for name in ("beyond", "keys_beyond", "r2")),
    ]  # fmt: skip
    for words, value in (
        ("Which training gives another accuracy than the usual one?", "top1"),
        ("Which training gives another share of filters explained?", "beyond"),
    ):
        questions += [Contrast(words, row, usual, value) for row in rows if row != usual]
    return questions


def kept_steps(steps: int) -> list[int]:
    """Return the steps at which filters are measured: none, powers of two, and the last.

    >>> kept_steps(11)
    [0, 1, 2, 4, 8, 11]
    """
    return [0, *(2**i for i in range(steps.bit_length()) if 2**i < steps), steps]

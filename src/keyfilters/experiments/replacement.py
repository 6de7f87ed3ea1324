"""What fine-tuning brings back after filters became keys: the experiment of lindeberg2026modelling.

A network is trained; its filters are replaced; the rest is tuned. The paper takes keys and factors
from the trained network, but writes them into an early checkpoint and trains from there; whether
the early checkpoint itself would have told them is a question here too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.frozen_keys import (
    KEYS,
    LEARNED,
    NOISE,
    NONE,
    RANDOM,
    TREATMENT_HELP,
    WORDS,
)
from keyfilters.experiments.questions import Contrast, Question

__all__ = ["EARLY", "TUNED", "replacement"]

TUNED = (
    *("learned", "frozen", "idealized", "keys", "keys?learn=bias", "keys?learn=sigma"),
    *("keys?learn=bias,sigma", "keys?keys=random", "keys?keys=random&learn=bias"),
)
EARLY = ("learned", "keys", "keys?keys=random", "keys?drawn=1")
TRAINED = {"start": None, "chosen": None, **LEARNED}
DEFAULTS = Shared(size=7)
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


def replacement(
    shared: Shared = DEFAULTS,
    *,
    data: Annotated[str, DATA_HELP] = "digits",
    treatment: Annotated[tuple[str, ...], TREATMENT_HELP] = TUNED,
    early_treatment: Annotated[
        tuple[str, ...], "The same for the early checkpoint; none leaves it out."
    ] = EARLY,
    early: Annotated[float, "Share of the training before the early checkpoint."] = 0.1,
    tuning_epochs: Annotated[float, "Passes after the replacement."] = 3.0,
    tuning_lr: Annotated[float, "Learning rate of these."] = 0.003,
    margin: Annotated[float, "Points within which two accuracies count as equal."] = 0.5,
) -> Experiment:
    """What does fine-tuning bring back after filters became keys, as in lindeberg2026modelling?

    Trains networks, replaces their filters by keys, measures, tunes the rest and measures again;
    and does the same from an early checkpoint.
    """
    from keyfilters.experiments.run_parts import step_count
    from keyfilters.experiments.single_run import MODEL, make_run

    if not 0 < early < 1:
        raise KeyFiltersError(f"--early {early}; a share between 0 and 1 is expected")
    base = shared.options(data=data)
    steps = step_count(base)
    step = max(1, round(early * steps))
    tuning = {"schedule": {"epochs": tuning_epochs}, "optimiser": {"lr": tuning_lr}}
    rest = {"schedule": {"steps": steps - step}}
    rows = [*_rows("trained", treatment), *_rows("early", early_treatment)]
    runs = []
    for seed in shared.all_seeds:
        trained = make_run(TRAINED, seed, {**base, "keep": [step]})
        runs.append(trained)
        for row, text in rows:
            whole = row["start"] == "trained"
            given = {"start": f"@trained/{MODEL if whole else f'step-{step}.safetensors'}"}
            changes = {"changes": tuning if whole else rest, "treatment": text, "before": True}
            runs.append(make_run(row, seed, {**base, **given, **changes}, {"trained": trained}))
    return Experiment(
        name="replacement",
        title="What does fine-tuning bring back after filters became keys?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions(margin),
        panels=[Panel("top-1 accuracy, %", split=("start",))],
        words={**WORDS, "start": {"trained": "tuned", "early": "from early"},
               "chosen": {"trained": "by trained"}},
        columns=("before",),
    )  # fmt: skip


def _rows(start: str, treatments: tuple[str, ...]) -> list[tuple[dict[str, Any], str]]:
    """Return the conditions of a start: a row of factors, and the treatment."""
    from keyfilters.treatment import Treatment

    found = []
    for treatment in map(Treatment.parse, treatments):
        row = {"start": start, "chosen": None, **treatment.factors()}
        found.append((row, str(treatment)))
        if start == "early" and treatment.uses_filters:
            by_trained = replace(treatment, assign_from="@trained")
            found.append(({**row, "chosen": "trained"}, str(by_trained)))
    return found


def _questions(margin: float) -> list[Question]:
    tuned, early = {"start": "trained"}, {"start": "early"}
    kept = {"filters": "frozen", **NONE}
    match = "After tuning, do networks on keys match those that kept their filters?"
    on = "From an early checkpoint, do networks on keys match one that goes on learning?"
    beat = "From an early checkpoint, do the keys beat random ones and drawn ones?"
    nearest = {**early, "keys": KEYS, "assignment": "trained"}
    return [
        Contrast(match, {**tuned, "keys": KEYS}, kept, margin=margin),
        Contrast(match, {**tuned, "filters": "idealized"}, kept, margin=margin),
        Contrast("After tuning, do the keys beat random ones used in the same way?",
                 {**tuned, "keys": KEYS}, {"keys": RANDOM}),
        Contrast("After tuning, do the keys beat noise of the covariance of filters?",
                 {**tuned, "keys": KEYS}, {"keys": NOISE}),
        *(Contrast(f"Before any tuning, do the keys beat {words}?",
                   {**tuned, "keys": KEYS, "bias": False, "sigma": False}, {"keys": other},
                   "before")
          for words, other in (("random ones", RANDOM), ("such noise", NOISE))),
        Contrast("Does a learned b help?", {**tuned, "bias": True}, {"bias": False}),
        Contrast("Does a learned σ help?", {**tuned, "sigma": True}, {"sigma": False}),
        Contrast("Is it better to freeze the filters than to let them learn on?",
                 {**tuned, **kept}, LEARNED),
        Contrast(on, nearest, {**LEARNED, "chosen": None}, margin=margin),
        Contrast("From an early checkpoint, does it take the trained network to choose the keys?",
                 {**nearest, "chosen": "trained"}, {"chosen": None}),
        Contrast(beat, nearest, {"keys": RANDOM}),
        Contrast(beat, nearest, {"assignment": "random", "chosen": None}),
    ]  # fmt: skip

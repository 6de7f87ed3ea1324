"""Does a network learn as well with eight frozen keys? The training of babaiee2025quest.

Controls decide what an answer means: filters that are learned, eight random keys used in the same
way, and the network's own random first filters, frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Contrast, Question, Trend
from keyfilters.query_strings import parse

__all__ = ["LEARNED", "TREATMENTS", "WORDS", "frozen_keys", "questions_on_keys"]

TREATMENTS = (
    *("learned", "keys?drawn=1", "keys?drawn=1&learn=bias", "keys", "keys?learn=bias"),
    *("keys?keys=random", "keys?keys=random&drawn=1", "keys?keys=random&drawn=1&learn=bias"),
    "frozen",
)
TREATMENT_HELP = (
    "What is done to the filters: learned, frozen, idealized, or keys?keys=NAME&learn=bias,sigma "
    "(NAME: lindeberg2026-B, consensus, random:8, a file; or lines:8, covariance:8, with "
    "keys_from=@lender: learned from a network of another seed, or drawn from noise like its own)."
)
NONE = dict.fromkeys(("keys", "assignment", "amplitude", "bias", "sigma"))
LEARNED, FROZEN = {"filters": "learned", **NONE}, {"filters": "frozen", **NONE}
KEYS, RANDOM = "lindeberg2026-B", "random:8"
FOUND, NOISE = "lines:8", "covariance:8"  # of another network: its filters, or noise like them
WORDS: dict[str, dict[Any, str]] = {
    "filters": {"learned": "learned filters", "frozen": "filters frozen", "keys": "",
                "idealized": "own idealised models"},
    "keys": {KEYS: "8 idealised keys", RANDOM: "8 random keys", FOUND: "8 discovered keys",
             NOISE: "8 keys of same covariance"},
    "assignment": {"random": "drawn", "trained": "nearest"},
    "amplitude": {True: "a learned"},
    "bias": {True: "b learned"},
    "sigma": {True: "σ learned"},
}  # fmt: skip
DEFAULTS = Shared(size=7)
EXPLANATION = (
    "A depthwise convolution looks at each channel with one small filter. Here these filters do "
    "not learn: each is one of a few keys times a factor, fixed from the first step to the last, "
    "plus a constant b that may be learned (babaiee2025quest). All else learns. If eight shapes "
    "are enough, such a network must reach one whose filters learn; if it is these shapes that "
    "count, eight random ones and the network's own random first filters must be worse. Keys are "
    "drawn for each channel, or are those nearest to the filters of a network that learned from "
    "the same images with another seed."
)


def frozen_keys(
    shared: Shared = DEFAULTS,
    *,
    data: Annotated[str, DATA_HELP] = "digits",
    samples: Annotated[tuple[int, ...], "Numbers of training images, with commas; 0: all."] = (0,),
    condition: Annotated[tuple[str, ...], TREATMENT_HELP] = TREATMENTS,
    steps: Annotated[int, "Of every run, however many images; 0: --epochs counts."] = 0,
    margin: Annotated[float, "Points within which two accuracies count as equal."] = 0.5,
) -> Experiment:
    """Do eight frozen keys suffice to learn, as babaiee2025quest found?

    Trains networks whose filters stay on keys from the first step on, drawn or as in a trained
    network, and beside them learned filters, random keys and frozen random filters.
    """
    from keyfilters.experiments.run_parts import image_count
    from keyfilters.experiments.single_run import make_run
    from keyfilters.experiments.source_networks import source_network
    from keyfilters.treatment import Treatment

    treatments = [Treatment.parse(text) for text in condition]
    if len(samples) > 1 and 0 in samples:
        samples = tuple(count or image_count(shared.options(data=data)) for count in samples)
    if samples != (0,) and "samples" in parse(data)[1]:
        raise KeyFiltersError(f"{data!r} says how many images to take; --samples says it too")
    runs = []
    for seed in shared.all_seeds:
        for count in samples:
            part = f"{data}{'&' if '?' in data else '?'}samples={count}" if count else data
            changes = {"schedule": {"steps": steps}} if steps else {}
            lender = source_network(shared, part, seed, steps)
            for treatment in treatments:
                row = {"images": count or None, **treatment.factors()}
                needed = treatment.uses_filters or "@lender" in str(treatment)
                sources = {"lender": lender} if needed else {}
                if treatment.uses_filters:
                    treatment = replace(treatment, assign_from="@lender")
                given = {"treatment": str(treatment), "changes": changes}
                runs.append(make_run(row, seed, shared.options(data=part, **given), sources))
    return Experiment(
        name="frozen-keys",
        title="Do eight frozen keys suffice?",
        explanation=EXPLANATION,
        runs=runs,
        questions=[
            *questions_on_keys(margin),
            Contrast("Do the keys beat frozen random first filters?", {"keys": KEYS}, FROZEN),
            Contrast("Do learned filters beat frozen first ones?", LEARNED, FROZEN),
            Contrast("Does it help to take keys, signs, a and b of a trained network?",
                     {"keys": KEYS, "assignment": "trained"}, {"assignment": "random"}),
            Trend("Does what the keys give over learned filters change with the images?",
                  {"keys": KEYS}, LEARNED, "images", "doubling"),
        ],
        panels=[Panel("top-1 accuracy, %", split=("images",))],
        words=WORDS,
        matrix=("filters", "images", "mean"),
    )  # fmt: skip


def questions_on_keys(margin: float) -> list[Question]:
    """Return what is asked of every network whose filters are on keys."""
    match = "Do networks on keys match learned filters?"
    return [
        Contrast(match, {"keys": KEYS}, LEARNED, margin=margin),
        Contrast(match, {"keys": "consensus"}, LEARNED, margin=margin),
        Contrast(match, {"keys": FOUND}, LEARNED, margin=margin),
        Contrast(match, {"filters": "idealized"}, LEARNED, margin=margin),
        Contrast("Do the keys beat random ones used in the same way?", {"keys": KEYS},
                 {"keys": RANDOM}),
        *(Contrast("Do keys beat noise of the covariance of filters?", {"keys": x}, {"keys": NOISE})
          for x in (KEYS, FOUND)),
        Contrast("Do discovered keys beat random ones?", {"keys": FOUND}, {"keys": RANDOM}),
        Contrast("Does a learned b help?", {"bias": True}, {"bias": False}),
        Contrast("Does a learned σ help?", {"sigma": True}, {"sigma": False}),
        Contrast("Does a learned a help?", {"amplitude": True}, {"amplitude": False}),
    ]  # fmt: skip

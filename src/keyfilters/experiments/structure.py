"""Does the structure of filters matter beyond their second-order statistics?

Networks whose depthwise filters are frozen: learned by another network, or noise that keeps its
covariance layer by layer, its power spectra, or its norms; or eight keys of several origins. Each
stands beside its nulls, and beside learned filters and the network's own first ones, frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Contrast, Question

if TYPE_CHECKING:
    from keyfilters.experiments.run import Run

__all__ = ["FILTERS", "structure"]

FROZEN, KEYS = "transfer?from=@source&freeze=1", "keys?keys={}:8&keys_from=@{}&drawn=1"
IDEALISED = "8 idealised keys"
LIKE_IDEALISED = ("8 keys of idealised covariance", "8 keys of idealised spectra")
FILTERS = {  # what the filters are -> the treatment
    "learned": "learned",
    "own first": "frozen",
    "of another network": FROZEN,
    "channels shuffled": f"{FROZEN}&control=channel-shuffled",
    "same covariance": f"{FROZEN}&control=covariance",
    "same spectra": f"{FROZEN}&control=phase",
    "white": f"{FROZEN}&control=random",
    IDEALISED: "keys?drawn=1",
    LIKE_IDEALISED[0]: KEYS.format("covariance", "ideal"),  # the run with idealised keys
    LIKE_IDEALISED[1]: KEYS.format("phase", "ideal"),
    "8 discovered keys": KEYS.format("lines", "source"),
    "8 keys of same covariance": KEYS.format("covariance", "source"),
    "8 random keys": "keys?keys=random&drawn=1",
}
SEED, IMAGES = "another seed", "other images"  # of the network whose filters are taken
DEFAULTS = Shared(size=7)
EXPLANATION = (
    "Trained depthwise filters are smooth, and smooth noise looks like receptive fields. So the "
    "question that the papers leave open: does it matter that filters are edges and centres, or "
    "only that neighbouring taps are alike? Here filters never learn, all else does. They come "
    "from a network that learned (from another seed, or from other images), or are Gaussian noise "
    "with the tap covariance of each of its layers, or its filters with their power spectra and "
    "random phases, or white noise of their means and norms. If structure beyond second-order "
    "statistics counts, the first must beat the second and third. Likewise eight keys: idealised "
    "ones (babaiee2025quest), eight drawn from noise of their covariance (so that each is a sum of "
    "idealised keys) or of their spectra, eight discovered on the other network, eight drawn from "
    "noise of its covariance, eight random ones; every channel draws its key and sign."
)


def structure(
    shared: Shared = DEFAULTS,
    *,
    data: Annotated[str, DATA_HELP] = "digits",
    other: Annotated[
        str, "Other images to learn filters from, or any source of trained filters; none: none."
    ] = "",
    filters: Annotated[tuple[str, ...], f"Any of {', '.join(FILTERS)}."] = tuple(FILTERS),
    steps: Annotated[int, "Of every run; 0: --epochs of the images of --data."] = 0,
    margin: Annotated[float, "Points within which two accuracies count as equal."] = 0.5,
) -> Experiment:
    """Does the structure of filters matter beyond their second-order statistics?

    Trains networks on frozen filters of another network, on noise of their covariance, spectra and
    norms, and on eight keys beside eight of noise.
    """
    from keyfilters.experiments.run_parts import is_data, step_count
    from keyfilters.experiments.single_run import make_run
    from keyfilters.experiments.source_networks import source_network

    for name in filters:
        if name not in FILTERS:
            known = f"{', '.join(FILTERS)} are known{nearest(name, FILTERS)}"
            raise KeyFiltersError(f"filters cannot be {name!r}; {known}")
    steps = steps or step_count(shared.options(data=data))
    runs, changes = [], {"schedule": {"steps": steps}}
    for seed in shared.all_seeds:
        lenders: dict[str, Run | str] = {SEED: source_network(shared, data, seed, steps)}
        if other:
            lent = source_network(shared, other, seed, steps) if is_data(other) else other
            lenders[IMAGES] = lent
        options = shared.options(data=data, treatment=FILTERS[IDEALISED], changes=changes)
        ideal = make_run({"filters": IDEALISED}, seed, options)
        for row, text, lender in _rows(filters, lenders):
            if isinstance(lender, str):
                text = text.replace("@source", lender)
            options = shared.options(data=data, treatment=text, changes=changes)
            roles: dict[str, Any] = {"source": lender, "ideal": ideal}
            needs = {role: run for role, run in roles.items() if f"@{role}" in text}
            runs.append(make_run(row, seed, options, needs))
    return Experiment(
        name="structure",
        title="Does structure matter beyond second-order statistics?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions(filters, margin),
        panels=[Panel("top-1 accuracy, %")],
        words={"filters": {"learned": "learned filters", "own first": "own first filters"}},
        matrix=("filters", "source", "mean"),
    )


def _rows(
    filters: tuple[str, ...], lenders: Mapping[str, Run | str]
) -> list[tuple[dict[str, Any], str, Run | str | None]]:
    """Return the conditions: a row of factors, the treatment, and whose filters it needs."""
    found: list[tuple[dict[str, Any], str, Run | str | None]] = []
    for name in filters:
        if "@source" not in FILTERS[name]:
            found.append(({"filters": name, "source": None}, FILTERS[name], None))
            continue
        for source, lender in lenders.items():
            found.append(({"filters": name, "source": source}, FILTERS[name], lender))
    return found


def _questions(filters: tuple[str, ...], margin: float) -> list[Question]:
    learned, first = ({"filters": x, "source": None} for x in ("learned", "own first"))
    random, ideal = ({"filters": x, "source": None} for x in ("8 random keys", IDEALISED))
    covariance, spectra = ({"filters": x, "source": None} for x in LIKE_IDEALISED)
    taken, found = {"filters": "of another network"}, {"filters": "8 discovered keys"}
    noise, drawn = {"filters": "same covariance"}, {"filters": "8 keys of same covariance"}
    beyond = "Do filters of another network beat noise of {}?"
    match, beat = "Do eight keys match learned filters?", "Do eight keys beat eight of noise?"
    asked = [
        Contrast(beyond.format("the same covariance"), taken, noise),
        Contrast(beyond.format("the same spectra"), taken, {"filters": "same spectra"}),
        Contrast(beyond.format("the same norms"), taken, {"filters": "white"}),
        Contrast("Does covariance matter?", noise, {"filters": "white"}),
        Contrast("Do frozen filters match learned ones?", taken, learned, margin=margin),
        Contrast("Do frozen filters beat the network's own first ones?", taken, first),
        Contrast("Does it matter which channel has which filter?", taken,
                 {"filters": "channels shuffled"}),
        Contrast(match, ideal, learned, margin=margin),
        Contrast(match, found, learned, margin=margin),
        Contrast(beat, ideal, random),
        Contrast(beat, found, random),
        Contrast(beat, found, drawn),
        Contrast(beat, ideal, drawn | {"source": SEED}),
        Contrast(beat, ideal, covariance),
        Contrast(beat, ideal, spectra),
        Contrast("Does covariance make eight keys better?", drawn, random),
        Contrast("Does covariance make eight keys better?", covariance, random),
    ]  # fmt: skip
    return [x for x in asked if {x.one["filters"], x.other["filters"]} <= set(filters)]

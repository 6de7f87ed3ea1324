"""From which layer on are filters special? Depth curves in the style of yosinski2014transferable.

The first n depthwise layers are taken from a network that learned the same task (B) or another one
(A), and frozen, or trained on; as contrast the first n pointwise layers (babaiee2025masterkey).
Frozen random weights (R) say what any frozen weights would cost.
"""

from __future__ import annotations

from typing import Annotated

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Contrast, Question
from keyfilters.experiments.source_networks import source_network

__all__ = ["depth_curve"]

DEFAULTS = Shared(seeds=3, epochs=6, resolution=16, channels=1)
LEARNED = {"layers": None, "n": None, "source": "learned", "tuned": None}
LAYER_KINDS = ("depthwise", "pointwise")
KINDS = (("B", False), ("A", False), ("R", False), ("B", True), ("A", True))
EXPLANATION = (
    "The first n layers of a network for one task (B) come from a network that learned the same "
    "task (BnB) or another one (AnB), frozen, or trained on (+); all else starts anew "
    "(yosinski2014transferable). Where AnB falls below BnB, layers are special to their task; "
    "where BnB itself falls, layers no longer fit each other. If depthwise filters are general in "
    "all layers (babaiee2025masterkey), neither may happen, however large n. RnB are first random "
    "weights, frozen: what falls no further than they do is no sign of anything learned. Pointwise "
    "layers, which mix the channels, are the contrast."
)


def depth_curve(
    shared: Shared = DEFAULTS,
    *,
    target: Annotated[str, f"Data set B. {DATA_HELP}"] = "digits",
    source: Annotated[str, "Data set A, likewise."] = "photos",
    depths: Annotated[tuple[int, ...], "Numbers n of layers, with commas; default 1 to all."] = (),
    layer_kinds: Annotated[tuple[str, ...], "depthwise, pointwise, or both."] = LAYER_KINDS,
) -> Experiment:
    """From which layer on are filters special to their task (yosinski2014transferable)?

    Trains networks whose first n depthwise layers come from a network of the same task, of another
    one, or are random, frozen or trained on; as contrast the first n pointwise layers.

    Raises:
        KeyFiltersError: no or unknown kinds of layers; more first layers than the network has.
    """
    from keyfilters.experiments.single_run import layer_count, make_run

    base = shared.options(data=target)
    if not layer_kinds or (unknown := set(layer_kinds) - set(LAYER_KINDS)):
        got = ", ".join(sorted(unknown)) if layer_kinds else "none"
        raise KeyFiltersError(f"layer kinds: {got}; the choice is {', '.join(LAYER_KINDS)}")
    counts = {what: layer_count(base, what) for what in layer_kinds}
    for what, count in counts.items():
        if not count or any(not 0 < n <= count for n in depths):
            got = f"--depths {','.join(map(str, depths)) or 'all'}"
            raise KeyFiltersError(f"{got}: {shared.network} has {count} {what} layers")
    runs = []
    for seed in shared.all_seeds:
        lenders = {"B": source_network(shared, target, seed)}
        lenders["A"] = source_network(shared, source, seed)
        runs.append(make_run(LEARNED, seed, base))
        for what, count in counts.items():
            for n in depths or range(1, count + 1):
                for kind, tuned in KINDS:
                    row = {"layers": what, "n": n, "source": kind, "tuned": tuned}
                    weights = {"layers": what, "first": n, "freeze": not tuned}
                    lender = lenders.get(kind)
                    weights["source"] = "@lender" if lender else ""
                    sources = {"lender": lender} if lender else {}
                    runs.append(make_run(row, seed, {**base, "weights": weights}, sources))
    return Experiment(
        name="depth-curve",
        title="From which layer on are filters special to their task?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions(),
        panels=[Panel("top-1 accuracy, %", "top1", "n, first layers from elsewhere", over="n",
                      split=("layers",))],
        words={"source": {"B": "BnB", "A": "AnB", "R": "RnB"}, "tuned": {True: "trained on"}},
        matrix=("source", "n", "mean"),
    )  # fmt: skip


def _questions() -> list[Question]:
    same, other, random = ({"source": kind, "tuned": False} for kind in "BAR")
    beat = "Do trained layers, frozen, beat random ones?"
    on = "Do layers that come from elsewhere and learn on give a gain?"
    return [
        Contrast("Do the first n layers of another task cost accuracy, frozen?", other, LEARNED),
        Contrast("Do the first n layers of the same task cost accuracy, frozen?", same, LEARNED),
        Contrast("Do n random first layers cost accuracy, frozen?", random, LEARNED),
        Contrast("Do layers of another task fall below those of the same?", other, same),
        Contrast(beat, other, random),
        Contrast(beat, same, random),
        Contrast(on, {"source": "B", "tuned": True}, LEARNED),
        Contrast(on, {"source": "A", "tuned": True}, LEARNED),
    ]

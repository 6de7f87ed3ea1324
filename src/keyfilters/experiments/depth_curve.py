"""From which layer on are filters special? Depth curves in the style of yosinski2014transferable.

The first n depthwise layers are taken from a network that learned the same task (B) or another one
(A), and frozen, or trained on; as contrast the first n pointwise layers (babaiee2025masterkey).
Frozen random weights say what any frozen weights would cost.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor, nn

from keyfilters.depthwise import depthwise_layers
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.lending import copy_weights_, freeze_weights_, lent
from keyfilters.experiments.runs import Run
from keyfilters.experiments.stages import How, run_stages
from keyfilters.experiments.transfer import pointwise_weights
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure

__all__ = ["BASE", "DEPTHWISE", "KINDS", "POINTWISE", "condition_name", "depth_curve"]

DEPTHWISE, POINTWISE = "depthwise", "pointwise"
BASE = "learned"
SAME, OTHER, RANDOM = "B", "A", "R"
KINDS = ((SAME, False), (OTHER, False), (RANDOM, False), (SAME, True), (OTHER, True))


def depth_curve(
    out: str | os.PathLike[str],
    *,
    target: str = "digits",
    source: str = "photos",
    depths: Sequence[int] = (),
    pointwise: bool = True,
    seeds: Sequence[int] = range(5),
    setup: Setup | None = None,
    **how: Unpack[How],
) -> pd.DataFrame:
    """Train networks on the target (B) whose first n layers come from elsewhere.

    All other weights start anew. The networks that lend are trained with the next seed, so that
    what is borrowed never fitted the first weights of the rest by chance, but with the images of
    the one that borrows, so that it knows of no others.

    Args:
        out: folder of the runs; the same call, also with more seeds, goes on there.
        target: data set B, as `keyfilters.experiments.trial.load` takes it.
        source: data set A; brought to the resolution and channels of the setup.
        depths: numbers n of layers; by default 1 to all.
        pointwise: whether to run the contrast.
        seeds: of the runs; those that share one are compared in pairs.
        setup: what all runs share.
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid` of all runs on the target, see `condition_name`.

    Raises:
        KeyFiltersError: data that cannot be had, images of A and B that differ in shape, or a depth
            out of range, before any run; or a network that lends could not be trained.
    """
    setup = setup or Setup()
    images, others = load(target, setup, 0), load(source, setup, 0)
    shapes = [tuple(x.images.shape[1:]) for x in (images, others)]
    if shapes[0] != shapes[1]:
        got = f"images of {target} are {shapes[0]}, of {source} {shapes[1]}"
        raise KeyFiltersError(f"{got}; give channels and resolution that suit both")
    network = build_network(setup, images, 0)
    counts = {what: len(_weights(network, what)) for what in _asked(pointwise)}
    for what, count in counts.items():
        if not count or any(not 0 < n <= count for n in depths):
            raise KeyFiltersError(f"{setup.network} has {count} {what} layers, asked: {depths}")
    shared = setup.to_dict()

    def lender(data: str, seed: int) -> Run:
        options = {**shared, "data": data, "images_seed": seed}
        return Run(f"{data}: lender", seed + 1, options)

    lenders, runs = [], []
    for seed in seeds:
        lent = {SAME: lender(target, seed), OTHER: lender(source, seed)}
        lenders += list(lent.values())
        runs.append(Run(BASE, seed, {**shared, "data": target}))
        for what, count in counts.items():
            for n in depths or range(1, count + 1):
                for kind, tuned in KINDS:
                    options = {"layers": what, "n": n, "kind": kind, "tuned": tuned}
                    options["lender"] = str(lent[kind].folder) if kind in lent else ""
                    name = condition_name(what, n, kind, tuned)
                    runs.append(Run(name, seed, {**shared, "data": target, **options}))
    return run_stages([(lenders, train_on_first), (runs, train_on_first)], out, how)[-1]


def condition_name(layers: str, n: int, kind: str, tuned: bool = False) -> str:
    """Name of a condition in tables, after yosinski2014transferable; R is random.

    >>> condition_name("depthwise", 2, "A", True)
    'depthwise A2B+'
    """
    return f"{layers} {kind}{n}B{'+' if tuned else ''}"


def train_on_first(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run; the first layers of its network may be borrowed, and frozen."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, options.get("images_seed", seed))
    network = build_network(setup, data, seed)
    first: dict[str, Tensor] = {}
    if "n" in options:
        first = dict(list(_weights(network, options["layers"]).items())[: options["n"]])
        if options["lender"]:
            copy_weights_(first, load_file(lent(folder, options["lender"])))
    check = freeze_weights_({} if options.get("tuned") else first)
    result = train_and_measure(setup, network, data, seed, folder)
    check()
    return result


def _asked(pointwise: bool) -> tuple[str, ...]:
    return (DEPTHWISE, POINTWISE) if pointwise else (DEPTHWISE,)


def _weights(network: nn.Module, layers: str) -> dict[str, Tensor]:
    """Weights of the depthwise or of the pointwise layers, by name, from the input on."""
    if layers == POINTWISE:
        return pointwise_weights(network)
    return {f"{name}.weight": conv.weight for name, conv in depthwise_layers(network)}

"""Do frozen depthwise filters of other networks serve? The experiment of babaiee2025masterkey.

Controls decide what an answer means: random filters frozen, the same filters with their taps or
their channels shuffled, single taps; and pointwise filters, frozen in the same way, as contrast.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.lending import copy_weights_, freeze_weights_, lent
from keyfilters.experiments.runs import Run
from keyfilters.experiments.stages import How, run_stages
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery import freeze_filters_, transfer_filters_
from keyfilters.training import READERS

__all__ = ["CONTROLS", "DATA", "condition_name", "trained_here", "transfer"]

DATA = ("digits", "photos")
CONTROLS = ("random", "impulse", "tap-shuffled", "channel-shuffled")
AS_IS, OWN, POINTWISE = "as they are", "own first", "pointwise"


def transfer(
    out: str | os.PathLike[str],
    *,
    targets: Sequence[str] = DATA,
    sources: Sequence[str] = (),
    seeds: Sequence[int] = range(5),
    pointwise: bool = True,
    setup: Setup | None = None,
    **how: Unpack[How],
) -> pd.DataFrame:
    """Train networks on frozen depthwise filters of others, and on what controls for it.

    For every target the network is trained with

    - learned filters: nothing frozen;
    - its own random first filters, frozen;
    - the filters of each source frozen: as they are; random ones of the same means and norms;
      single taps of the same norms; with taps shuffled; with channels shuffled;
    - and as contrast the pointwise filters of each source that is trained here frozen, and its own
      random ones.

    A source is a data set, on which the same network is trained first, with the next seed, so that
    the network that borrows never had the first weights of the one that lends; or whatever
    `keyfilters.read` takes, whose filters are taken from the layers of like relative depth. Sources
    that differ in their samples only are trained for equally many steps. Batch normalisation learns
    in every run; that the frozen weights did not move is checked by their digest.

    Args:
        out: folder of the runs; the same call, also with more seeds, goes on there.
        targets: data sets, see `keyfilters.experiments.trial.load`.
        sources: as above; empty takes the targets.
        seeds: of the runs; those that share one are compared in pairs.
        pointwise: whether to run the contrast.
        setup: what all runs share.
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid` of all runs on targets, see `condition_name`.

    Raises:
        KeyFiltersError: data or a source that cannot be had, or a folder that holds other runs,
            before any run; or a network that was to lend its filters could not be trained.
    """
    setup = setup or Setup()
    sources = tuple(dict.fromkeys(sources or targets))
    targets = tuple(dict.fromkeys(targets))
    shared = setup.to_dict()
    images = {data: load(data, setup, 0) for data in {*targets, *filter(trained_here, sources)}}
    for source in sources:
        if not trained_here(source):
            read(source)
    if pointwise and not pointwise_weights(build_network(setup, images[targets[0]], 0)):
        raise KeyFiltersError(f"{setup.network} has no 1×1 convolutions; type --no-pointwise")
    counts = {source: len(images[source].images) for source in sources if source in images}
    steps = equal_steps(counts, setup)

    def learning(data: str, seed: int, steps: int) -> Run:
        name = condition_name(data, f"learned, {steps} steps" if steps else "learned")
        return Run(name, seed, {**shared, "data": data, "steps": steps})

    learned = [learning(target, seed, 0) for seed in seeds for target in targets]
    lenders = {(s, seed): learning(s, seed + 1, steps[s]) for seed in seeds for s in counts}
    frozen = []
    for seed in seeds:
        for target in targets:
            for kind, source in _conditions(sources, pointwise):
                lender = lenders.get((source, seed))
                options = {**shared, "data": target, "kind": kind, "source": source}
                options["lender"] = source if lender is None else str(lender.folder)
                frozen.append(Run(condition_name(target, kind, source), seed, options))
    stages = [([*learned, *lenders.values()], train_learned), (frozen, train_frozen)]
    first, rest = run_stages(stages, out, how)
    own = first["options.data"].isin(targets) & (first["options.steps"] == 0)
    own &= first["seed"].isin(list(seeds))  # those that only lend have other seeds
    table = pd.concat([first[own], rest], ignore_index=True)
    table.to_csv(Path(out) / "table.csv", index=False)
    return table


def equal_steps(counts: Mapping[str, int], setup: Setup) -> dict[str, int]:
    """Steps for each source: as many as the largest of its family takes; 0 where it has no family.

    >>> equal_steps({"digits": 1437, "digits?samples=320": 320, "photos": 1400}, Setup(epochs=2))
    {'digits': 44, 'digits?samples=320': 44, 'photos': 0}
    """
    largest: dict[str, int] = {}
    sizes = Counter(family(source) for source in counts)
    for source, count in counts.items():
        largest[family(source)] = max(largest.get(family(source), 0), count)
    return {
        source: int(setup.epochs * (largest[family(source)] // setup.batch))
        if sizes[family(source)] > 1
        else 0
        for source in counts
    }


def family(source: str) -> str:
    """A data set without its number of samples.

    >>> family("fashion-mnist?samples=500&classes=0,1") == family("fashion-mnist?classes=0,1")
    True
    """
    name, options = parse(source)
    options.pop("samples", None)
    return f"{name} {options}"


def trained_here(source: str) -> bool:
    """Whether a source is a data set to train on, not filters to read."""
    return parse(source)[0].partition(":")[0] in READERS


def condition_name(target: str, kind: str, source: str = "") -> str:
    """Name of a condition in tables.

    >>> condition_name("digits", "tap-shuffled", "photos")
    'digits: filters of photos, tap-shuffled'
    >>> condition_name("digits", "learned"), condition_name("digits", "own first")
    ('digits: learned', 'digits: own first filters')
    """
    short = source.removeprefix("package:").removesuffix("-pytorch-model")
    if kind == POINTWISE:
        return f"{target}: {POINTWISE} filters of {short}"
    if not source:
        return f"{target}: {kind}" + ("" if kind.startswith("learned") else " filters")
    return f"{target}: filters of {short}" + (f", {kind}" if kind != AS_IS else "")


def _conditions(sources: Sequence[str], pointwise: bool) -> list[tuple[str, str]]:
    """What is frozen, and whose it is."""
    found = [(OWN, "")]
    found += [(kind, source) for source in sources for kind in (AS_IS, *CONTROLS)]
    if pointwise:
        found += [(f"{OWN} {POINTWISE}", "")]
        found += [(POINTWISE, source) for source in sources if trained_here(source)]
    return found


def train_learned(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run in which nothing is frozen; it leaves its weights in its folder."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    return train_and_measure(setup, network, data, seed, folder, steps=options["steps"])


def train_frozen(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run in which the filters of another network are frozen."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    kind, source = options["kind"], options["source"]
    lender = options["lender"]
    if source and trained_here(source):
        lender = lent(folder, lender)
    if POINTWISE in kind:
        weights = pointwise_weights(network)
        if source:
            copy_weights_(weights, load_file(lender))
        check = freeze_weights_(weights)
        result = train_and_measure(setup, network, data, seed, folder)
        check()
        return result
    if source:
        control = None if kind == AS_IS else kind
        transfer_filters_(network, read(lender), control=control, seed=seed)
    frozen = freeze_filters_(network)
    result = train_and_measure(setup, network, data, seed, folder)
    frozen.check()
    return result


def pointwise_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of the dense 1×1 convolutions, by the name of their parameter."""
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }

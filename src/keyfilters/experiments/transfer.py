"""Do frozen depthwise filters of other networks serve? The experiment of babaiee2025masterkey.

Controls decide what an answer means: random filters frozen, the same filters with their taps or
their channels shuffled, single taps; and pointwise filters, frozen in the same way, as contrast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.asked import parse
from keyfilters.experiments.findings import Findings, in_short, table_of, verdicts
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.runner import run_grid
from keyfilters.experiments.runs import Run, grid
from keyfilters.experiments.statistics import LEVEL
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure
from keyfilters.sources import read
from keyfilters.surgery import freeze_filters_, transfer_filters_
from keyfilters.training.readers import READERS

__all__ = ["CONTROLS", "DATA", "condition_name", "findings", "trained_here", "transfer"]

DATA = ("digits", "photos")
CONTROLS = ("tap-shuffled", "channel-shuffled")  # of the filters of every source
ALONE = ("random", "impulse")  # that hardly depend on the source, so that one does
AS_IS, POINTWISE = "as they are", "pointwise"


def transfer(
    out: str | os.PathLike[str],
    *,
    targets: Sequence[str] = DATA,
    sources: Sequence[str] = (),
    seeds: Sequence[int] = range(5),
    pointwise: bool = True,
    setup: Setup | None = None,
    workers: int | None = None,
    progress: Callable[[str], object] | None = None,
) -> pd.DataFrame:
    """Train networks on frozen depthwise filters of others, and on what controls for it.

    For every target the network is trained with

    - learned filters: nothing frozen;
    - the filters of each source frozen, as they are, with taps shuffled, with channels shuffled;
    - random filters and single taps frozen, of the first source's norms;
    - and as contrast the pointwise filters of each source that is trained here frozen, and random
      ones.

    A source is a data set, on which the same network is trained first, with another seed than the
    network that it lends to; or whatever `keyfilters.read` takes, whose filters are taken from the
    layers of like relative depth. Batch normalisation learns in every run; that the frozen weights
    did not move is checked by their digest.

    Args:
        out: folder of the runs; the same call goes on there.
        targets: data sets, see `keyfilters.experiments.trial.load`.
        sources: as above; empty takes the targets.
        seeds: of the runs; those that share one are compared in pairs.
        pointwise: whether to run the contrast.
        setup: what all runs share.
        workers: runs at a time.
        progress: called with words as the runs end.

    Returns:
        The table of `keyfilters.experiments.run_grid` of all runs, see `condition_name`.

    Raises:
        KeyFiltersError: data or a source that cannot be had; before any run.
    """
    setup = setup or Setup()
    sources = tuple(dict.fromkeys(sources or targets))
    targets = tuple(dict.fromkeys(targets))
    own = tuple(dict.fromkeys([*targets, *filter(trained_here, sources)]))
    for data in own:
        load(data, setup, 0)
    for source in sources:
        if not trained_here(source):
            read(source)
    shared = setup.to_dict()
    learned = grid(
        {condition_name(data, "learned"): {**shared, "data": data} for data in own}, seeds
    )
    run_grid(learned, train_learned, out, workers=workers, progress=progress)
    frozen = []
    for target in targets:
        for kind, source in _conditions(sources, pointwise):
            name = condition_name(target, kind, source)
            options = {**shared, "data": target, "kind": kind, "source": source}
            # The source's other layers were learned from other first weights than ours.
            for seed, lender in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
                frozen.append(Run(name, seed, {**options, "lender": _lent(source, lender)}))
    frozen.sort(key=lambda run: run.seed)
    first = run_grid(learned, train_learned, out)
    rest = run_grid(frozen, train_frozen, out, workers=workers, progress=progress)
    table = pd.concat([first, rest], ignore_index=True)
    table.to_csv(Path(out) / "table.csv", index=False)
    return table


def trained_here(source: str) -> bool:
    """Whether a source is a data set to train on, not filters to read."""
    return parse(source)[0].partition(":")[0] in READERS


def condition_name(target: str, kind: str, source: str = "") -> str:
    """Name of a condition in tables.

    >>> condition_name("digits", "tap-shuffled", "photos")
    'digits: filters of photos, tap-shuffled'
    >>> condition_name("digits", "learned"), condition_name("digits", "random", "photos")
    ('digits: learned', 'digits: random filters')
    """
    short = source.removeprefix("package:").removesuffix("-pytorch-model")
    if kind in ALONE or kind == f"{POINTWISE} random":
        return f"{target}: {kind} filters"
    if kind == POINTWISE:
        return f"{target}: {POINTWISE} filters of {short}"
    if not source:
        return f"{target}: {kind}"
    return f"{target}: filters of {short}" + (f", {kind}" if kind != AS_IS else "")


def _conditions(sources: Sequence[str], pointwise: bool) -> list[tuple[str, str]]:
    """What is frozen, and whose it is."""
    found = [(kind, source) for source in sources for kind in (AS_IS, *CONTROLS)]
    found += [(kind, sources[0]) for kind in ALONE]
    if pointwise:
        found += [(POINTWISE, source) for source in sources if trained_here(source)]
        found += [(f"{POINTWISE} random", "")]
    return found


def _lent(source: str, seed: int) -> str:
    """Where the filters lie: below the folder of the grid, or a source for `keyfilters.read`."""
    if not source or not trained_here(source):
        return source
    return str(Run(condition_name(source, "learned"), seed).folder / "model.safetensors")


def train_learned(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run in which nothing is frozen; it leaves its weights in its folder."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    return train_and_measure(setup, build_network(setup, data, seed), data, seed, folder)


def train_frozen(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run in which the filters of another network are frozen."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    kind, lender = options["kind"], options["lender"]
    if trained_here(options["source"]):
        lender = folder.parents[2] / lender
    if kind.startswith(POINTWISE):
        kept = freeze_pointwise_(network, load_file(lender) if kind == POINTWISE else None)
        result = train_and_measure(setup, network, data, seed, folder)
        if any(not torch.equal(x, kept[name]) for name, x in pointwise_weights(network).items()):
            raise KeyFiltersError("pointwise weights were frozen, but moved")
        return result
    control = None if kind == AS_IS else kind
    bank = read(lender)
    transfer_filters_(network, bank, control=control, seed=seed)
    frozen = freeze_filters_(network)
    result = train_and_measure(setup, network, data, seed, folder)
    frozen.check()
    return result


def freeze_pointwise_(network: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Copy the 1×1 convolutions of an equal network, if there is one, and freeze them.

    Returns:
        Copies of the frozen weights, by name.
    """
    for name, weight in pointwise_weights(network).items():
        if state is not None:
            with torch.no_grad():
                weight.copy_(state[name])
        weight.requires_grad_(False)
    return {name: weight.clone() for name, weight in pointwise_weights(network).items()}


def pointwise_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of the dense 1×1 convolutions, by the name of their parameter."""
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }


EXPLANATION = (
    "A depthwise convolution looks at each channel with one small filter; the layers between mix "
    "the channels. If such filters are general (babaiee2025masterkey), a network can take them "
    "from another network that learned something else, keep them frozen, and learn the rest. Here "
    "that is compared with learning them, and with what must be worse if the shapes of the filters "
    "matter: random filters, single taps, the same filters with taps or channels shuffled, all "
    "frozen too. Batch normalisation learns in every run. As contrast the pointwise filters, that "
    "mix the channels, are frozen in the same way."
)


def findings(table: pd.DataFrame, out: str | os.PathLike[str]) -> Findings:
    """Say what a table of `transfer` supports.

    Compared are, for each target, the filters of each source with learned filters, random filters,
    single taps and its own shuffled ones; its pointwise filters with learned and random ones; and
    of sources that are one data set of different size the larger one with the next smaller.

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.
    """
    frozen = table[table["options.kind"].notna()]
    sources = list(dict.fromkeys(frozen[frozen["options.source"] != ""]["options.source"]))
    targets = list(dict.fromkeys(frozen["options.data"]))
    asked: list[tuple[str, tuple[str, str]]] = []
    for target in targets:
        for source in sources:
            asked += _questions(target, source)
        for small, large in _growing(sources):
            pair = (condition_name(target, AS_IS, large), condition_name(target, AS_IS, small))
            asked.append((f"On {target}, does the larger source {large} serve better?", pair))
    conditions, comparisons = table_of(table, "top1", [pair for _, pair in asked])
    told = verdicts(comparisons)
    means = conditions.set_index("condition")["mean"]
    rows = {"learned": ("learned", ""), **{f"{s}": (AS_IS, s) for s in sources}}
    for source in sources:
        rows |= {f"{source}, {control}": (control, source) for control in CONTROLS}
    rows |= {kind: (kind, sources[0]) for kind in ALONE}
    matrix = pd.DataFrame(
        {t: [means.get(condition_name(t, *row), nan) for row in rows.values()] for t in targets},
        index=pd.Index(list(rows), name="filters of"),
    )
    return Findings(
        title="Do the filters of other networks serve?",
        explanation=EXPLANATION,
        short=f"{in_short(comparisons)} {_do_shapes_matter(comparisons, frozen)}".strip(),
        answers=[(question, told[pair]) for question, pair in asked if pair in told],
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves=read_curves(table, out, "curve"),
        matrices=[(matrix, "Mean accuracy in %; rows: whose filters, columns: trained on.")],
    )


def _do_shapes_matter(comparisons: pd.DataFrame, frozen: pd.DataFrame) -> str:
    """Say so if no filters of a source were found to beat random ones."""
    own = set(frozen[frozen["options.kind"] == AS_IS]["condition"])
    random = set(frozen[frozen["options.kind"] == "random"]["condition"])
    tested = comparisons[comparisons["condition"].isin(own) & comparisons["reference"].isin(random)]
    if tested.empty or ((tested["p_holm"] < LEVEL) & (tested["difference"] > 0)).any():
        return ""
    return (
        "Nowhere were trained filters found to beat random ones: no sign that shapes matter here."
    )


def _questions(target: str, source: str) -> list[tuple[str, tuple[str, str]]]:
    own = condition_name(target, AS_IS, source)
    learned = condition_name(target, "learned")
    asked = [(f"On {target}, do frozen filters of {source} match learned ones?", (own, learned))]
    for kind in (*ALONE, *CONTROLS):
        what = f"the same, {kind}" if kind in CONTROLS else f"{kind} ones"
        question = f"On {target}, do frozen filters of {source} beat {what}?"
        asked.append((question, (own, condition_name(target, kind, source))))
    mixing = condition_name(target, POINTWISE, source)
    random = condition_name(target, f"{POINTWISE} random")
    asked.append(
        (f"On {target}, do frozen pointwise filters of {source} match?", (mixing, learned))
    )
    asked.append(
        (
            f"On {target}, do frozen pointwise filters of {source} beat random ones?",
            (mixing, random),
        )
    )
    return asked


def _growing(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (smaller, next larger) of sources that differ in their samples only."""
    families: dict[str, list[tuple[float, str]]] = {}
    for source in filter(trained_here, sources):
        name, options = parse(source)
        samples = options.pop("samples", 0) or inf  # all
        families.setdefault(f"{name} {options}", []).append((samples, source))
    pairs = []
    for family in families.values():
        ordered = [source for _, source in sorted(family)]
        pairs += list(pairwise(ordered))
    return pairs

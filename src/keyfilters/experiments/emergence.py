"""When do the patterns appear, and do they tell good training from bad?

Small networks are trained well and badly; of weights kept on the way it is asked how many filters
one idealised receptive field explains, and how much of them the eight keys explain, beside the same
filters with shuffled taps and beside random keys (a question of babaiee2024unveiling's reviewers).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.clusters import Atlas
from keyfilters.clusters.config import AtlasConfig
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.experiments.on_keys import IDEALISED, RANDOM, key_set
from keyfilters.experiments.runner import run_grid
from keyfilters.experiments.runs import Run, grid
from keyfilters.experiments.stages import How
from keyfilters.experiments.trial import (
    Setup,
    build_network,
    check_batch,
    load,
    measure,
    train_and_measure,
    watched,
)
from keyfilters.nulls import null_units
from keyfilters.query_strings import parse
from keyfilters.receptive_fields import match
from keyfilters.scalespace import centred_unit
from keyfilters.sources import read
from keyfilters.training import Data

__all__ = ["QUALITIES", "USUAL", "atlas_name", "emergence", "kept_steps", "shares"]

USUAL = "usual"
QUALITIES = (
    USUAL,
    "std=0.02",
    "width=8",
    "steps=0.1",
    "samples=0.1",
    "noise=0.4",
    "noise=1",
    "lr=0.0001",
    "lr=0.3",
)
CHANGES = ("width", "depth", "lr", "weight_decay", "std", "steps", "samples", "noise")
SHARES = ("samples", "noise")
DRAWS = 10  # sets of random keys
STEPS = "step-*.safetensors"


def emergence(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    qualities: Sequence[str] = QUALITIES,
    seeds: Sequence[int] = range(5),
    setup: Setup | None = None,
    atlas: Sequence[str] = (USUAL, "std=0.02"),
    **how: Unpack[How],
) -> pd.DataFrame:
    """Train networks well and badly, and look at their filters on the way.

    Args:
        out: folder of the runs; the same call, also with more seeds, goes on there.
        data: as `keyfilters.experiments.trial.load` takes it.
        qualities: ``"usual"``, or changes to it such as ``"width=8&noise=0.4"``: width and depth of
            convmixer, lr, weight_decay, std (of the first depthwise filters, truncated normal),
            steps (as a multiple of the usual number), samples (share of the training images) and
            noise (share of their labels that is replaced by random ones).
        seeds: of the runs.
        setup: what all runs share but for these changes.
        atlas: qualities of which an atlas is made, of the weights of all kept steps and all seeds
            together, to see which patterns appear when; see `atlas_name`.
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid`, with the measures of `shares` at the end of training. The results
        also hold lists over the steps that were kept: steps, accuracy (%, on the watched test
        images), and every measure as ``NAME_on_the_way``.

    Raises:
        KeyFiltersError: a quality or data that cannot be had, before any run.
    """
    setup = setup or Setup(size=7)
    images = load(data, setup, 0)
    for quality in qualities:
        check_batch(setup, spoiled(images, changes(quality).get("samples", 1), 0, 0))
        build_network(changed(setup, changes(quality)), images, 0)
    runs = grid({q: {"quality": q} for q in qualities}, seeds, **setup.to_dict(), data=data)
    table = run_grid(runs, train_and_look, out, **how)
    atlases = []
    for quality in atlas:
        done = table[(table["condition"] == quality) & (table["status"] == "done")]
        if len(done):
            options = {"size": setup.size, "folders": list(done["folder"])}
            atlases.append(Run(atlas_name(quality, list(done["seed"])), 0, options))
    if atlases:
        with suppress(KeyFiltersError):  # such as too few filters; the page says so
            run_grid(atlases, cluster_steps, Path(out), **how)
    table.to_csv(Path(out) / "table.csv", index=False)  # the atlases have left theirs
    return table


def atlas_name(quality: str, seeds: Sequence[int]) -> str:
    """Condition of the run that clusters all kept steps of a quality.

    Its result holds steps, classified (% of the filters, at each step), and for every kind of
    pattern the same as ``"kind NAME"``.

    >>> atlas_name("usual", [0, 1, 2])
    'atlas of usual, seeds 0 1 2'
    """
    return f"atlas of {quality}, seeds {' '.join(map(str, seeds))}"


def changes(quality: str) -> dict[str, float]:
    """Read a quality.

    >>> changes("width=8&noise=0.4"), changes("usual")
    ({'width': 8, 'noise': 0.4}, {})
    """
    options = {} if quality == USUAL else parse(f"?{quality}")[1]
    for name, value in options.items():
        if name not in CHANGES:
            known = f"{', '.join(CHANGES)} are known{nearest(name, CHANGES)}"
            raise KeyFiltersError(f"{quality!r}: {name!r} cannot be changed; {known}")
        most = 1 if name in SHARES else inf
        if not isinstance(value, int | float) or not 0 < value <= most:
            expected = "above 0" + (" and at most 1" if name in SHARES else "")
            raise KeyFiltersError(f"{quality!r}: {name} is {value!r}; a number {expected} expected")
    return options


def changed(setup: Setup, asked: dict[str, float]) -> Setup:
    """Return the setup with those changes that concern it."""
    own: dict[str, Any] = {k: x for k, x in asked.items() if k in CHANGES[:5]}
    return replace(setup, **own)


def train_and_look(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run, and measure its filters at every step that was kept."""
    asked = changes(options["quality"])
    setup = changed(Setup.from_dict(options), asked)
    whole = load(options["data"], setup, seed)
    steps = max(1, round(setup.recipe(seed).steps(len(whole.images)) * asked.get("steps", 1)))
    data = spoiled(whole, asked.get("samples", 1), asked.get("noise", 0), seed)
    network = build_network(setup, data, seed)
    kept = kept_steps(steps)
    result = train_and_measure(setup, network, data, seed, folder, steps=steps, keep=kept)
    rows = [
        look(folder / f"step-{step}.safetensors", network, watched(data, setup), seed)
        for step in kept
    ]
    on_the_way = {f"{name}_on_the_way": [row[name] for row in rows] for name in rows[0]}
    last = {name: value for name, value in rows[-1].items() if name != "accuracy"}
    return {**result, **last, "steps": kept, **on_the_way}


def spoiled(data: Data, samples: float, noise: float, seed: int) -> Data:
    """Leave a share of the training images, and give a share of these a random label."""
    generator = torch.Generator().manual_seed(seed)
    count = len(data.images)
    left = torch.randperm(count, generator=generator)[: max(1, round(samples * count))]
    images, labels = data.images[left], data.labels[left].clone()
    wrong = torch.randperm(len(left), generator=generator)[: round(noise * len(left))]
    drawn = torch.randint(len(data.classes), (len(wrong),), generator=generator)
    labels[wrong] = drawn
    return replace(data, images=images, labels=labels)


def kept_steps(steps: int) -> list[int]:
    """Steps at which filters are looked at: none, powers of two, and the last.

    >>> kept_steps(11)
    [0, 1, 2, 4, 8, 11]
    """
    return [0, *(2**i for i in range(steps.bit_length()) if 2**i < steps), steps]


def cluster_steps(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Make one atlas of all steps that runs have kept, and tell its patterns step by step."""
    size = options["size"]
    files = [path for run in options["folders"] for path in (folder.parents[2] / run).glob(STEPS)]
    layers = [
        replace(layer, model=path.stem)
        for path in sorted(files)
        for layer in read(path).layers
        if layer.size == (size, size)
    ]
    atlas = Atlas(seed=seed).fit(FilterBank(layers))
    atlas.save(folder)
    table = atlas.table_[atlas.table_["flaw"] == ""]
    steps = sorted(int(name.partition("-")[2]) for name in table["model"].unique())
    by_step = table["model"].map(lambda name: int(name.partition("-")[2]))
    found = table["classified"].astype(bool)
    shares = {"classified": 100 * found.groupby(by_step).mean()}
    for kind in table.loc[found, "kind"].value_counts().index:
        shares[f"kind {kind}"] = 100 * (found & (table["kind"] == kind)).groupby(by_step).mean()
    return {"steps": steps, **{name: share[steps].tolist() for name, share in shares.items()}}


def look(path: Path, network: nn.Module, data: Data, seed: int) -> dict[str, float]:
    """Measure the weights of one step."""
    network.load_state_dict(load_file(path))
    bank = read(network)
    found = shares(bank.stack(next(iter(bank.sizes)))[0], seed)
    return {"accuracy": measure(network.eval(), data)["top1"], **found}


def shares(filters: NDArray[np.float32], seed: int) -> dict[str, float]:
    """Return how far idealised receptive fields and the eight keys explain filters.

    Args:
        filters: ``(n, k, k)``.
        seed: of the controls.

    Returns:
        explained (% of the filters of which one idealised receptive field explains at least
        (1 − t)² of the variance, t the atlas's threshold), shuffled (the same for the filters with
        shuffled taps), covariance (for Gaussian filters of the same tap covariance), beyond (the
        difference to these), r2 (median), keys (% of the variance of unit
        filters that the nearest of the eight idealised keys explains), random_keys (the same for
        eight random ones, mean of ten draws) and keys_beyond (their difference).
    """
    size = filters.shape[1]
    flat = filters.reshape(len(filters), -1)
    bar = (1 - AtlasConfig().threshold_of((size, size))) ** 2
    r2 = match(filters, null=None)["r2"].to_numpy()
    unit = centred_unit(flat)
    nulls = {
        kind: match(null_units(unit, (size, size), kind, seed).reshape(filters.shape), null=None)[
            "r2"
        ].to_numpy()
        for kind in ("tap-permuted", "covariance")
    }

    def kept(name: str, draw: int = 0) -> float:
        a = key_set(name, size, draw).assign(unit.reshape(filters.shape))[1]
        return 100 * float((np.asarray(a) ** 2).mean())

    explained, shuffled, covariance = (
        100 * float((x >= bar).mean()) for x in (r2, nulls["tap-permuted"], nulls["covariance"])
    )
    keys = kept(IDEALISED)
    random = float(np.mean([kept(RANDOM, draw) for draw in range(DRAWS)]))
    return {
        "explained": explained,
        "shuffled": shuffled,
        "covariance": covariance,
        "beyond": explained - covariance,
        "r2": float(np.median(r2)),
        "keys": keys,
        "random_keys": random,
        "keys_beyond": keys - random,
    }

"""What the filters of a network tell: how far receptive fields and keys explain them, and patterns.

These are measures for the runs of `emergence`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.clusters import Atlas
from keyfilters.clusters.size_atlas import threshold_of
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_units
from keyfilters.receptive_fields import match
from keyfilters.scalespace import centred_unit
from keyfilters.sources import read

__all__ = ["explained", "explained_filters", "patterns_by_step"]

DRAWS = 10  # sets of random keys


def explained(network: nn.Module, seed: int) -> dict[str, float]:
    """Return `explained_filters` of the depthwise filters of a network."""
    bank = read(network)
    return explained_filters(bank.stack(next(iter(bank.sizes)))[0], seed)


def explained_filters(filters: NDArray[np.float32], seed: int) -> dict[str, float]:
    """Return how far idealised receptive fields and the eight keys explain filters.

    Args:
        filters: ``(n, k, k)``.
        seed: of the controls.

    Returns:
        explained (% of the filters of which one idealised receptive field explains at least
        (1 − t)² of the variance, t the atlas's threshold), shuffled (the same for the filters with
        shuffled taps), covariance (for Gaussian filters of the same tap covariance), beyond (the
        difference to these), r2 (median), keys (% of the variance of unit filters that the nearest
        of the eight idealised keys explains), random_keys (the same for eight random ones, mean of
        ten draws) and keys_beyond (their difference).
    """
    size = filters.shape[1]
    unit = centred_unit(filters.reshape(len(filters), -1))
    bar = (1 - threshold_of((size, size))) ** 2

    def share(of: NDArray[np.floating]) -> float:
        r2 = match(of.reshape(filters.shape), null=None)["r2"].to_numpy()
        return 100 * float((r2 >= bar).mean())

    def kept(keys: KeySet) -> float:
        a = np.asarray(keys.assign(unit.reshape(filters.shape))[1])
        return 100 * float((a**2).mean())

    nulls = {
        kind: share(null_units(unit, (size, size), kind, seed))
        for kind in ("tap-permuted", "covariance")
    }
    r2 = match(filters, null=None)["r2"].to_numpy()
    found = 100 * float((r2 >= bar).mean())
    keys = kept(KeySet.named("lindeberg2026-B", size))
    random = float(np.mean([kept(KeySet.named("random:8", size, draw)) for draw in range(DRAWS)]))
    return {
        "explained": found,
        "shuffled": nulls["tap-permuted"],
        "covariance": nulls["covariance"],
        "beyond": found - nulls["covariance"],
        "r2": float(np.median(r2)),
        "keys": keys,
        "random_keys": random,
        "keys_beyond": keys - random,
    }


def patterns_by_step(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Make one atlas of all steps that runs have kept, and tell its patterns step by step.

    Returns:
        steps, classified (% of the filters, at each step), ``kind NAME`` (the same of every kind of
        pattern); or why: the atlas could not be made.
    """
    files = [file for run in options["sources"].values() for file in Path(run).glob("step-*.*")]
    layers = [
        replace(layer, model=path.stem) for path in sorted(files) for layer in read(path).layers
    ]
    try:
        atlas = Atlas(seed=seed).fit(FilterBank(layers))
    except KeyFiltersError as error:  # such as too few filters
        return {"why": str(error)}
    atlas.save(folder)
    table = atlas.table_[atlas.table_["flaw"] == ""]
    step = table["model"].map(lambda name: int(name.partition("-")[2]))
    found = table["classified"].astype(bool)
    kinds = {"classified": found}
    for kind in table.loc[found, "kind"].value_counts().index:
        kinds[f"kind {kind}"] = found & (table["kind"] == kind)
    lists = {name: (100 * x.groupby(step).mean()).tolist() for name, x in kinds.items()}
    return {"steps": sorted(set(step)), **lists}

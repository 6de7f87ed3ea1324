"""The atlas as tables: one row a filter, and coverage of the bank, each model and each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters.size_atlas import SizeAtlas, size_label
from keyfilters.nulls import NULLS

__all__ = ["NullsClassified", "coverage_table", "empty_table", "enter"]

MODEL_COLUMNS = ("family", "sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2",
                 "p", "q")  # fmt: skip
KEY_COLUMNS = ("published_key", "published_r2", "consensus_key", "consensus_r2")

# Which filters of each null are classified, and the positions of the filters they stand for.
NullsClassified = tuple[Mapping[str, NDArray[np.bool_]], NDArray[np.int64]]


def empty_table(bank: FilterBank) -> pd.DataFrame:
    """One row a filter in the order of the layers, not yet assigned to patterns."""
    parts = []
    for layer in bank.layers:
        _, table = FilterBank([layer]).stack(layer.size)
        stride = float(max(layer.stride)) if layer.stride else np.nan
        parts.append(table.assign(k_y=layer.size[0], k_x=layer.size[1], stride=stride))
    columns = ["model", "layer", "depth", "channel", "k_y", "k_x", "stride", "norm", "mean", "flaw"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table[columns].assign(
        pattern="",
        name="",
        kind="",
        code=np.nan,
        dissimilarity=np.nan,
        classified=False,
        **dict.fromkeys((*MODEL_COLUMNS, *KEY_COLUMNS), np.nan)
        | {"family": "", "published_key": "", "consensus_key": ""},
    )


def enter(table: pd.DataFrame, atlas: SizeAtlas) -> None:
    """Write what was found for one kernel size into the table of all filters."""
    patterns = atlas.patterns
    columns: dict[str, Any] = {
        name: patterns.table[name].to_numpy()[patterns.index]
        for name in ("pattern", "name", "kind")
    } | {
        "code": patterns.code,
        "dissimilarity": patterns.dissimilarity,
        "classified": patterns.dissimilarity < atlas.threshold,
    }
    if atlas.matched is not None:
        columns |= {name: atlas.matched.table[name].to_numpy() for name in MODEL_COLUMNS}
    for name, use in atlas.keys.items():
        columns[f"{name}_key"] = np.array(use.keys.names, dtype=object)[use.index]
        columns[f"{name}_r2"] = use.r2
    for column, values in columns.items():
        table.iloc[atlas.rows, table.columns.get_loc(column)] = values


def coverage_table(
    table: pd.DataFrame,
    sizes: Mapping[tuple[int, int], SizeAtlas],
    nulls: Mapping[tuple[int, int], NullsClassified],
) -> pd.DataFrame:
    """Return the share of filters that are classified, of the bank, each model and each layer.

    Args:
        table: of all filters.
        sizes: what was found for each kernel size.
        nulls: for each, which filters of each null are classified, and of which of the usable
            filters they are the null: of some, if there are many.
    """
    parts = []
    for size, atlas in sizes.items():
        own = table.iloc[atlas.rows][["model", "layer", "depth", "classified"]]
        classified, chosen = nulls[size]
        own = own.rename(columns={"classified": "coverage"})
        for kind, found in classified.items():
            own[kind] = np.nan
            own.iloc[chosen, own.columns.get_loc(kind)] = found.astype(float)
        levels = {"bank": [], "model": ["model"], "layer": ["model", "layer", "depth"]}
        for level, keys in levels.items():
            groups = own.groupby(keys or (lambda _: 0), sort=False)
            part = groups[["coverage", *NULLS]].mean()
            part.insert(0, "filters", groups.size())
            part = part.reset_index(drop=not keys)
            parts.append(part.assign(level=level, size=size_label(size)))
    columns = ["level", "size", "model", "layer", "depth", "filters", "coverage", *NULLS]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)

"""The atlas as tables: one row a filter, and coverage of the bank, each model and each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters.per_filter import FLAWS, flaw_numbers, flaws_of
from keyfilters.clusters.size_atlas import SizeAtlas, size_label
from keyfilters.columns import GRAIN, text_column
from keyfilters.files import whole_file
from keyfilters.filter_rows import FilterRows
from keyfilters.nulls import NULLS
from keyfilters.threads import one_thread, piece_by_piece

__all__ = ["NullsClassified", "coverage_table", "filter_table", "layer_columns", "unusable_table",
           "write_table"]  # fmt: skip

MODEL_COLUMNS = ("sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2", "p", "q")
ROW_GROUP = 2**16  # rows of the table that are made and written together

# Which filters of each null are classified, and the positions of the filters they stand for.
NullsClassified = tuple[Mapping[str, NDArray[np.bool_]], NDArray[np.int64]]
Sizes = Mapping[tuple[int, int], SizeAtlas]


def filter_table(bank: FilterBank, sizes: Sizes, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return rows of the table of all filters, see `Atlas`.

    Args:
        bank: the filters.
        sizes: what was found for each kernel size.
        rows: ``(m,)`` numbers of filters in order of the layers, ascending.
    """
    windows = np.array([layer.size for layer in bank.layers]).reshape(-1, 2)
    own = _layer_numbers(bank, rows)
    columns: dict[str, Any] = dict(layer_columns(bank, rows, ("model", "layer", "depth")))
    columns["channel"] = rows - _starts(bank)[own]
    columns["k_y"], columns["k_x"] = windows[own].T
    columns |= layer_columns(bank, rows, ("stride",)) | _measured(bank, rows, windows[own])
    found = [_found(one, rows) for one in sizes.values()]
    for name in ("pattern", "name", "kind"):
        columns[name] = _texts(len(rows), [(at, *each[name]) for at, each in found])
    for name in ("code", "dissimilarity", "classified"):
        empty = False if name == "classified" else np.nan
        columns[name] = _numbers(len(rows), name, found, empty)
    columns["family"] = _texts(len(rows), [(at, *x["family"]) for at, x in found if "family" in x])
    for name in MODEL_COLUMNS:
        columns[name] = _numbers(len(rows), name, found, np.nan)
    for keys in ("published", "consensus"):
        name = f"{keys}_key"
        columns[name] = _texts(len(rows), [(at, *each[name]) for at, each in found if name in each])
        columns[f"{keys}_r2"] = _numbers(len(rows), f"{keys}_r2", found, np.nan)
    return pd.DataFrame(columns, copy=False)


def layer_columns(
    bank: FilterBank, rows: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, Any]:
    """Return what filters have of their layers: columns of model, layer, depth or stride.

    Args:
        bank: the filters.
        rows: ``(m,)`` numbers of filters in order of the layers.
        names: which columns; a stride is the larger of two, and NaN where unknown.
    """
    own = _layer_numbers(bank, rows)

    def texts(of_layer: list[str]) -> Any:
        codes, words = pd.factorize(np.array(of_layer, dtype=object))
        return text_column(codes[own], words.tolist())

    make: dict[str, Callable[[], Any]] = {
        "model": lambda: texts([layer.model for layer in bank.layers]),
        "layer": lambda: texts([layer.name for layer in bank.layers]),
        "depth": lambda: np.array([float(layer.depth) for layer in bank.layers])[own],
        "stride": lambda: np.array([_stride(layer.stride) for layer in bank.layers])[own],
    }
    return {name: make[name]() for name in names}


def unusable_table(bank: FilterBank, flaws: NDArray[np.uint8] | None = None) -> pd.DataFrame:
    """List the filters that have no shape to study: model, layer, channel and flaw.

    Args:
        bank: the filters.
        flaws: see `flaws_of`; found here by default.
    """
    flaws = flaws_of(bank) if flaws is None else flaws
    rows = np.flatnonzero(flaws)
    columns = layer_columns(bank, rows, ("model", "layer"))
    columns["channel"] = rows - _starts(bank)[_layer_numbers(bank, rows)]
    return pd.DataFrame(columns | {"flaw": np.array(FLAWS, dtype=object)[flaws[rows]]})


@one_thread()
def write_table(path: Path, bank: FilterBank, sizes: Sizes) -> None:
    """Write the table of all filters as a Parquet file, a group of rows at a time.

    Args:
        path: of the file.
        bank: the filters.
        sizes: what was found for each kernel size.

    Raises:
        KeyFiltersError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def group(rows: slice) -> Any:
        table = filter_table(bank, sizes, np.arange(rows.start, rows.stop))
        return pa.Table.from_pandas(table, preserve_index=False)

    # A file of Python's: the library takes no name that is not UTF-8.
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        groups = (made for _, made in piece_by_piece(group, len(bank), ROW_GROUP))
        first = next(groups)
        with pq.ParquetWriter(file, first.schema) as writer:
            for made in chain([first], groups):
                writer.write_table(made, row_group_size=ROW_GROUP)


def coverage_table(
    bank: FilterBank, sizes: Sizes, nulls: Mapping[tuple[int, int], NullsClassified]
) -> pd.DataFrame:
    """Return the share of filters that are classified, of the bank, each model and each layer.

    Args:
        bank: the filters.
        sizes: what was found for each kernel size.
        nulls: for each, which filters of each null are classified, and of which of the usable
            filters they are the null: of some, if there are many.
    """
    parts = []
    for size, atlas in sizes.items():
        classified, chosen = nulls[size]
        own = _layer_numbers(bank, atlas.rows)
        count = partial(np.bincount, minlength=len(bank.layers))
        sums = {"filters": count(own), "coverage": count(own, atlas.classified)}
        sums["drawn"] = count(own[chosen])
        sums |= {kind: count(own[chosen], found) for kind, found in classified.items()}
        layers = pd.DataFrame(
            {"model": [layer.model for layer in bank.layers]}
            | {"layer": [layer.name for layer in bank.layers]}
            | {"depth": [layer.depth for layer in bank.layers]}
            | sums
        )
        layers = layers[layers["filters"] > 0]
        levels = {"bank": [], "model": ["model"], "layer": ["model", "layer", "depth"]}
        for level, keys in levels.items():
            groups = layers.groupby(keys or (lambda _: 0), sort=False)
            part = groups[[*sums]].sum().reset_index(drop=not keys)
            part["coverage"] = part["coverage"] / part["filters"]
            for kind in classified:
                part[kind] = part[kind] / part["drawn"]
            parts.append(part.assign(level=level, size=size_label(size)))
    columns = ["level", "size", "model", "layer", "depth", "filters", "coverage", *NULLS]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def _stride(stride: tuple[int, int] | None) -> float:
    return float(max(stride)) if stride else np.nan


def _starts(bank: FilterBank) -> NDArray[np.int64]:
    """Return the number of the first filter of every layer."""
    return np.cumsum([0, *(len(layer.weight) for layer in bank.layers)])[:-1]


def _layer_numbers(bank: FilterBank, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    return FilterRows(bank, rows).layers_of(rows).astype(np.int32)


def _measured(
    bank: FilterBank, rows: NDArray[np.int64], windows: NDArray[np.int64]
) -> dict[str, Any]:
    """Return norm, mean and flaw of filters, whose windows are given one by one."""
    norm, mean, flaw = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows), np.uint8)
    for size in bank.sizes:
        own = np.flatnonzero((windows == size).all(1))
        filters = FilterRows(bank, rows[own])
        for start in range(0, len(own), GRAIN):
            part = slice(start, start + GRAIN)
            some = filters[part]
            flat = some.reshape(len(some), -1).astype(np.float64)
            norm[own[part]], mean[own[part]] = np.linalg.norm(flat, axis=1), flat.mean(axis=1)
            flaw[own[part]] = flaw_numbers(some)
    return {"norm": norm, "mean": mean, "flaw": text_column(flaw, FLAWS)}


def _found(one: SizeAtlas, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return which of some rows a kernel size has, and the columns of those.

    Columns of texts are words and the numbers of those.
    """
    place = np.searchsorted(one.rows, rows)
    known = place < len(one.rows)
    known[known] = one.rows[place[known]] == rows[known]
    place, patterns = place[known], one.patterns
    columns: dict[str, Any] = {
        name: (patterns.table[name].tolist(), patterns.index[place])
        for name in ("pattern", "name", "kind")
    }
    columns |= {"code": patterns.code[place], "dissimilarity": patterns.dissimilarity[place]}
    columns["classified"] = columns["dissimilarity"] < one.threshold
    if one.matched is not None:
        table = one.matched.table
        codes, words = pd.factorize(table["family"].iloc[place])
        columns |= {"family": (list(words), codes)}
        columns |= {name: table[name].to_numpy()[place] for name in MODEL_COLUMNS}
    for name, use in one.keys.items():
        columns[f"{name}_key"] = (list(use.keys.names), use.index[place])
        columns[f"{name}_r2"] = use.r2[place]
    return np.flatnonzero(known), columns


def _texts(count: int, found: list[tuple[NDArray[np.int64], list[str], NDArray[Any]]]) -> Any:
    """Return a column of texts that are known in some rows and else empty."""
    codes, numbers = np.zeros(count, np.int32), {"": 0}
    for at, words, index in found:
        own = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32)
        codes[at] = own[index]
    return text_column(codes, list(numbers))


def _numbers(
    count: int, name: str, found: list[tuple[NDArray[np.int64], dict[str, Any]]], empty: Any
) -> NDArray[Any]:
    """Return a column of numbers that are known in some rows and else `empty`."""
    column = np.full(count, empty)
    for at, columns in found:
        if name in columns:
            column[at] = columns[name]
    return column

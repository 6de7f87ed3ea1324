"""A fitted atlas in one safetensors file: nested results as JSON, their arrays as tensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.claims import Claim
from keyfilters.clusters.estimator import read_tensors
from keyfilters.clusters.evidence import Evidence
from keyfilters.clusters.key_use import KeyUse
from keyfilters.clusters.matched import Matched
from keyfilters.clusters.patterns import Patterns
from keyfilters.clusters.size_atlas import SizeAtlas
from keyfilters.columns import text_column
from keyfilters.errors import SourceError, refuse_damage
from keyfilters.keyset import KeySet
from keyfilters.tensor_files import save_tensors

__all__ = ["load_nested", "save_nested"]

RESULTS = {c.__name__: c for c in (Claim, Evidence, KeySet, KeyUse, Matched, Patterns, SizeAtlas)}
Tensors = dict[str, NDArray[Any]]


def save_nested(path: Path, value: Any, kind: str) -> None:
    """Write dictionaries, lists, tuples, arrays, tables, and results of an atlas, nested at will.

    Args:
        path: of the file.
        value: what to write.
        kind: a word that tells such files from others.
    """
    tensors: Tensors = {}
    told = json.dumps(_pack(value, tensors), ensure_ascii=False).encode()
    tensors["value"] = np.frombuffer(told, np.uint8)  # not metadata, whose length has a limit
    save_tensors(path, tensors, {"format": kind})


def load_nested(path: Path, kind: str) -> Any:
    """Read what `save_nested` wrote; banks are left out, and empty.

    Raises:
        SourceError: the file is missing, damaged, or of another kind.
    """
    metadata, tensors = read_tensors(path)
    if (found := metadata.get("format")) != kind:
        raise SourceError(f"{path} is not a fitted atlas: expected format {kind!r}, got {found!r}")
    with refuse_damage(path, "a fitted atlas"):
        return _unpack(json.loads(tensors["value"].tobytes()), tensors)


def _pack(value: Any, tensors: Tensors) -> Any:
    """Turn a value into JSON; everything but numbers and text is a list that starts with its type.

    Arrays go into `tensors`, by their number.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        name = str(len(tensors))
        tensors[name] = np.ascontiguousarray(value)
        return ["array", name]
    if isinstance(value, pd.DataFrame):
        columns = [[name, _pack_column(value[name], tensors)] for name in value]
        index = None if isinstance(value.index, pd.RangeIndex) else value.index.tolist()
        return ["table", index, columns]
    if isinstance(value, dict):
        return ["dict", *([_pack(k, tensors), _pack(v, tensors)] for k, v in value.items())]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_pack(item, tensors) for item in value)]
    held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    kept = [[k, _pack(v, tensors)] for k, v in held.items() if not isinstance(v, FilterBank)]
    return [type(value).__name__, *kept]


def _pack_column(column: pd.Series, tensors: Tensors) -> Any:
    """Pack numbers as an array, and text as numbers of the words that occur in it."""
    if column.dtype.kind in "biuf":
        return _pack(column.to_numpy(), tensors)
    codes, words = pd.factorize(column)
    return ["words", _pack(codes, tensors), words.tolist()]


def _unpack(data: Any, tensors: Tensors) -> Any:
    if not isinstance(data, list):
        return data
    kind, *parts = data
    if kind == "array":
        return tensors[parts[0]]
    if kind == "words":
        codes = _unpack(parts[0], tensors)
        if (codes < 0).any():
            return np.array([*parts[1], None], dtype=object)[codes]
        return text_column(codes, parts[1])
    if kind == "table":
        index, columns = parts
        return pd.DataFrame({k: _unpack(v, tensors) for k, v in columns}, index=index, copy=False)
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in parts}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors) for item in parts]
        return tuple(items) if kind == "tuple" else items
    fields = {f.name for f in dataclasses.fields(RESULTS[kind])}  # older files have more
    return RESULTS[kind](**{name: _unpack(x, tensors) for name, x in parts if name in fields})

"""Reading checkpoint files: safetensors, and all that PyTorch writes."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar

from keyfilters.bank import FORMAT, FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.content import what_it_is
from keyfilters.sources.statedicts import read_state_dict, unwrap
from keyfilters.sources.torch_files import aligned, load_torch
from keyfilters.sources.torch_tensors import Storage, StoredTensor

__all__ = ["load_pickle", "read_pickle", "read_safetensors", "read_shards"]

SAFETENSORS = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int",
    "I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip
# What stands in many checkpoints and is harmless: arguments of the command line, paths, and NumPy's
# scalars and arrays (metrics, states of random generators), under their names of both versions.
HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFD"),
    *(
        (x, f"numpy.{core}.multiarray.{x.__name__}")
        for core in ("core", "_core")
        for x in (scalar, _reconstruct)
    ),
]


def read_safetensors(path: Path, model: str, chosen: str = "") -> FilterBank:
    """Read a ``.safetensors`` file: a checkpoint, or a bank that keyfilters saved.

    Args:
        path: the file.
        model: name of the model in the bank's tables.
        chosen: which of several sets of weights; see `keyfilters.sources.weight_sets`.

    Raises:
        SourceError: the file is damaged or holds no weights.
    """
    metadata, tensors = _load_safetensors(path)
    if metadata.get("format") == FORMAT:
        return FilterBank.load(path)
    return _read(tensors, path, model, chosen, in_model_order=False)  # the format sorts its tensors


def _load_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the metadata and the tensors of a file, which stay in the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # checks every length
            metadata, names = file.metadata() or {}, list(file.keys())
    except (SafetensorError, OSError) as error:
        reason = f"{what_it_is(path)}: {error}"
        raise SourceError(f"{path} is not a readable safetensors file: {reason}") from error
    data = np.memmap(path, np.uint8, "c")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    return metadata, {name: _stored(data[start:], header[name]) for name in names}


def _stored(data: Any, entry: dict[str, Any]) -> StoredTensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    storage = Storage(f"torch.{SAFETENSORS.get(entry['dtype'], 'Byte')}Storage", lambda: None)
    storage.load = lambda: aligned(data, begin, end)
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}.get(entry["dtype"])
    return StoredTensor(storage, 0, shape, stride, dtype=dtype)


def read_shards(paths: Sequence[Path], model: str, chosen: str = "") -> FilterBank:
    """Read a model that lies in several safetensors files or pickles.

    Raises:
        SourceError: a file is damaged or refused, two hold a tensor of one name, or there are no
            weights.
    """
    tensors: dict[Any, Any] = {}
    sorts = False
    for path in paths:
        with path.open("rb") as file:
            sorts = file.read(9)[8:] == b"{"
        part = _load_safetensors(path)[1] if sorts else unwrap(_load(path))[0]
        if both := tensors.keys() & part.keys():
            raise SourceError(f"{path} and another part of its model both hold {min(both)!r}")
        tensors |= part
    return _read(tensors, paths[0], model, chosen, in_model_order=not sorts)


def read_pickle(path: Path, model: str, chosen: str = "") -> FilterBank:
    """Read a file of PyTorch without running code: checkpoint, module, TorchScript or export.

    Args:
        path: the file.
        model: name of the model in the bank's tables.
        chosen: which of several sets of weights; see `keyfilters.sources.weight_sets`.

    Raises:
        SourceError: the file is damaged or holds no weights.
    """
    return _read(_load(path), path, model, chosen, in_model_order=True)


def _load(path: Path) -> Any:
    try:
        return load_torch(path)
    except SourceError:
        raise
    except Exception as error:  # what a damaged file raises may be anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{path} is not a readable PyTorch checkpoint: {what_it_is(path)}: {reason:.200}"
        ) from error


def load_pickle(path: Path) -> dict[Any, Any]:
    """Load what `torch.save` wrote, on the CPU, without running code, to write it back.

    Only tensors and plain containers are unpickled (``weights_only=True``); a file that needs more
    is refused before any of its code runs.

    Raises:
        SourceError: the file is damaged, refused, or holds no mapping.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual pickle protocol, or NumPy's old names
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises may be anything
        text = str(error)
        code = re.search(r"GLOBAL [\w.]+|Unsupported (?:global|class): \S+|call reduce.*", text)
        named = re.search(r"Unsupported global: GLOBAL (\S+)", text)
        if code is not None:
            what = named[1] if named else code[0]
            raise SourceError(
                f"{path} was refused, since unpickling it would run code ({what}); load it where "
                "you trust it and pass its state dict: kf.read(state_dict)"
            ) from error
        reason = text.strip().split("\n")[0] or type(error).__name__
        raise SourceError(
            f"{path} is not a readable PyTorch checkpoint: {what_it_is(path)}: {reason}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise SourceError(
            f"{path} holds a {type(checkpoint).__name__}; expected a state dict or a mapping "
            "that holds one"
        )
    return checkpoint


def _read(
    checkpoint: Any, path: Path, model: str, chosen: str, *, in_model_order: bool
) -> FilterBank:
    try:
        return read_state_dict(checkpoint, model, in_model_order=in_model_order, chosen=chosen)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from error

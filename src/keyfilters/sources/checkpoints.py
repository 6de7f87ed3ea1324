"""Reading checkpoint files: safetensors, and pickles that are refused if they would run code."""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar

from keyfilters.bank import FORMAT, FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.statedicts import read_state_dict

__all__ = ["load_pickle", "read_pickle", "read_safetensors", "read_shards"]

BY_NAME = "depth by the order of names, not of execution: the format does not keep the order"
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


def read_safetensors(path: Path, model: str) -> FilterBank:
    """Read a ``.safetensors`` file: a checkpoint, or a bank that keyfilters saved.

    Raises:
        SourceError: the file is damaged or holds no weights.
    """
    metadata, tensors = _load_safetensors(path)
    if metadata.get("format") == FORMAT:
        return FilterBank.load(path)
    return _read(tensors, path, model, in_model_order=False)  # the format sorts its tensors


def _load_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = f"{_what_it_is(path)}: {error}"
        raise SourceError(f"{path} is not a readable safetensors file: {reason}") from error


def read_shards(paths: Sequence[Path], model: str) -> FilterBank:
    """Read a model that lies in several safetensors files or pickles.

    Raises:
        SourceError: a file is damaged or refused, two hold a tensor of one name, or there are no
            weights.
    """
    tensors: dict[Any, Any] = {}
    sorts = False
    for path in paths:
        sorts = path.suffix.lower() == ".safetensors"
        part = _load_safetensors(path)[1] if sorts else load_pickle(path)
        if both := tensors.keys() & part.keys():
            raise SourceError(f"{path} and another part of its model both hold {min(both)!r}")
        tensors |= part
    return _read(tensors, paths[0], model, in_model_order=not sorts)


def read_pickle(path: Path, model: str) -> FilterBank:
    """Read a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file that `torch.save` wrote.

    Raises:
        SourceError: as `load_pickle`, or the file holds no weights.
    """
    return _read(load_pickle(path), path, model, in_model_order=True)


def load_pickle(path: Path) -> dict[Any, Any]:
    """Load what `torch.save` wrote, on the CPU, without running code.

    Only tensors and plain containers are unpickled (``weights_only=True``); a file that needs more
    is refused before any of its code runs.

    Raises:
        SourceError: the file is damaged, refused, or holds no mapping.
    """
    if _is_torchscript(path):
        raise SourceError(
            f"{path} is a TorchScript archive, which holds code; load it where you trust it and "
            "pass its weights: kf.read(torch.jit.load(path).state_dict())"
        )
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
            f"{path} is not a readable PyTorch checkpoint: {_what_it_is(path)}: {reason}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise SourceError(
            f"{path} holds a {type(checkpoint).__name__}; expected a state dict or a mapping "
            "that holds one"
        )
    return checkpoint


def _read(
    checkpoint: dict[Any, Any], path: Path, model: str, *, in_model_order: bool
) -> FilterBank:
    try:
        bank = read_state_dict(checkpoint, model, in_model_order=in_model_order)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    if not in_model_order and len(bank.layers) > 1:
        notes = ["; ".join(filter(None, [layer.note, BY_NAME])) for layer in bank.layers]
        pairs = zip(bank.layers, notes, strict=True)
        bank.layers = [replace(layer, note=note) for layer, note in pairs]
    return bank


def _what_it_is(path: Path) -> str:
    """Say what a file that cannot be read seems to be, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(300)
            file.seek(0, 2)
            size = file.tell()
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    if not size:
        return "it is empty; fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the weights; type: git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; fetch the file itself"
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it and read what is inside"
    return f"of {size} bytes it is damaged or cut short; fetch or write it again"


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False

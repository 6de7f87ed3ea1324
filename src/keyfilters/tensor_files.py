"""Safetensors files that are larger than memory: written tensor by tensor, and mapped to memory."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.files import whole_file

__all__ = ["forget_pages", "map_tensors", "save_tensors"]

TYPES = {"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64"}
for _bits in (8, 16, 32, 64):
    TYPES |= {f"int{_bits}": f"I{_bits}", f"uint{_bits}": f"U{_bits}"}
KINDS = {name: np.dtype(kind).newbyteorder("<") for kind, name in TYPES.items()}


def save_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays as one safetensors file, each straight from where it lies.

    safetensors' own function writes all at once, so that tensors mapped from a file would have to
    be in memory together.

    Args:
        path: of the file, written as `keyfilters.files.whole_file` does.
        tensors: arrays of booleans, integers or real numbers, by name.
        metadata: texts by name.

    Raises:
        KeyFiltersError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind = TYPES[tensors[name].dtype.name]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name in order:
            array = tensors[name]
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).data)
            forget_pages(array)


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a sound safetensors file, read-only; they stay in the file until used.

    Args:
        path: of a file that `safetensors.safe_open` takes.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    tensors = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        kind, (begin, end) = KINDS[told["dtype"]], told["data_offsets"]
        count = (end - begin) // kind.itemsize
        flat = np.frombuffer(mapped, kind, count, start + begin) if count else np.empty(0, kind)
        tensors[name] = flat.reshape(told["shape"])
    return tensors


def forget_pages(array: NDArray[Any]) -> None:
    """Take the file that an array is mapped from out of memory; its next use reads it again."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

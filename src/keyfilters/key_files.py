"""Files of keys: the formats of `read_filters`, with a note that tells where the keys come from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from keyfilters.errors import KeyFiltersError
from keyfilters.files import typed_path, write_whole
from keyfilters.filter_files import SUFFIXES, read_filters

__all__ = ["read_keys", "write_keys"]

FORMAT = "keyfilters-keys-1"


def read_keys(path: Path) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Read a file that `write_keys` wrote, or any other that `read_filters` reads.

    Returns:
        Filters ``(K, k_y, k_x)`` as they are stored, and what was noted beside them; of a file
        without a note only ``names``.

    Raises:
        KeyFiltersError: the file is missing, damaged, or holds no filters.
    """
    path = typed_path(path)
    notes, filters = _notes(path)
    names: tuple[str, ...] = ()
    if filters is None:
        filters, names = read_filters(path)
    if not notes:
        return filters, {"names": names}
    try:
        return filters, {"models": None} | dict(json.loads(notes))
    except (TypeError, ValueError) as error:
        raise KeyFiltersError(f"{path.name} is a damaged file of keys: {error}") from error


def write_keys(path: Path, filters: NDArray[np.float64], fields: dict[str, Any]) -> None:
    """Write ``(K, k_y, k_x)`` filters and a note, all at once. Missing parent folders are created.

    Raises:
        KeyFiltersError: the name ends in none of the suffixes of `read_filters`, or the file cannot
            be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise KeyFiltersError(f"cannot write keys to {path.name}; expected one of {kinds}")
    notes = json.dumps(fields)
    content: bytes | str
    if suffix == ".safetensors":
        content = save({"filters": filters}, metadata={FORMAT: notes})
    elif suffix == ".txt":
        lines = [f"# {FORMAT} {notes}"]
        for i, key in enumerate(filters.tolist(), start=1):
            lines += ["", f"Filter {i}:", *(" ".join(map(repr, row)) for row in key)]
        content = "\n".join([*lines, ""])
    else:
        arrays: dict[str, Any] = {"filters": filters, FORMAT: notes}
        file = io.BytesIO()
        if suffix == ".npy":
            np.save(file, filters)
        else:
            np.savez(file, **arrays)
        content = file.getvalue()
    write_whole(path, content)


def _notes(path: Path) -> tuple[str, Any]:
    """Return what `write_keys` noted beside the filters, or "", and the filters of its .npz."""
    suffix, mark = path.suffix.lower(), f"# {FORMAT} "
    try:
        if suffix == ".safetensors":
            with safe_open(path, framework="numpy") as tensors:
                return (tensors.metadata() or {}).get(FORMAT, ""), None
        with path.open("rb") as file:
            if suffix == ".txt":
                line = file.readline().decode("utf-8-sig")
                return line.removeprefix(mark) if line.startswith(mark) else "", None
            if suffix == ".npz":
                with np.load(file) as arrays:
                    if FORMAT in arrays:
                        return str(arrays[FORMAT]), arrays["filters"]
    except Exception:  # damaged files make NumPy and zipfile raise nearly anything
        pass  # read_filters says what is the matter
    return "", None

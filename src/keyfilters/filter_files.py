"""Reading a few filters from a file: text in blocks, .npy, .npz or .safetensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError
from keyfilters.files import typed_path

__all__ = ["SUFFIXES", "read_filters"]

SUFFIXES = (".txt", ".npy", ".npz", ".safetensors")
_HEADER = re.compile(r"(?P<name>[^:]*[^:\s])\s*:")


def read_filters(path: str | Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    r"""Read filters of one window size, and their names.

    A text file holds blocks: a line ``Filter 1:`` (any name before the colon; blank lines alone
    also separate blocks), then one line a row, row 0 on top, with numbers separated by blanks or
    commas; ``#`` begins a comment. In the other formats every array is one filter
    ``(k_y, k_x)`` or several, ``(n, k_y, k_x)`` or ``(n, 1, k_y, k_x)``, which are numbered from 1.

    Args:
        path: file whose name ends in one of `SUFFIXES`.

    Returns:
        Filters ``(n, k_y, k_x)`` and n names.

    Raises:
        KeyFiltersError: the file is missing, of another format, damaged, ragged or without filters.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "two.txt")
    ...     _ = file.write_text("Filter 1:\n0 1\n2 3\n\nFilter 2:\n4 5\n6 7\n")
    ...     filters, names = read_filters(file)
    >>> filters.shape, names
    ((2, 2, 2), ('Filter 1', 'Filter 2'))
    """
    path = typed_path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise KeyFiltersError(f"cannot read filters from {path.name}; expected one of {kinds}")
    if not path.is_file():
        raise KeyFiltersError(f"there is no file {path}")
    try:
        named = _blocks(path) if suffix == ".txt" else _arrays(path, suffix)
    except OSError as error:
        reason = error.strerror or error
        raise KeyFiltersError(f"{path.name} is not a readable {suffix} file: {reason}") from error
    if not named:
        raise KeyFiltersError(f"{path.name} holds no filters")
    (first, window), *others = [(name, array.shape) for name, array in named]
    for name, shape in others:
        if shape != window:
            raise KeyFiltersError(
                f"{path.name}: all filters must be of one size, but {first!r} is "
                f"{window[0]}×{window[1]} and {name!r} is {shape[0]}×{shape[1]}"
            )
    filters = np.stack([array for _, array in named])
    for (name, _), array in zip(named, filters, strict=True):
        if not np.isfinite(array).all():
            raise KeyFiltersError(f"{path.name}: {name!r} holds a number that is not finite")
    return filters, tuple(name for name, _ in named)


def _blocks(path: Path) -> list[tuple[str, NDArray[np.float64]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise KeyFiltersError(f"{path.name} is not a readable text file: {error}") from error
    named: list[tuple[str, list[list[float]]]] = []
    fresh = True  # whether the next row begins a block
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        header = _HEADER.fullmatch(text)
        if header:
            _refuse_empty(path, named)
            named.append((header["name"], []))
            fresh = False
        elif not text:
            # A blank line between a header and its rows separates nothing.
            fresh = not named or bool(named[-1][1])
        else:
            if fresh:
                named.append((f"Filter {len(named) + 1}", []))
                fresh = False
            rows = named[-1][1]
            try:
                rows.append([float(word) for word in text.replace(",", " ").split()])
            except ValueError as error:
                raise KeyFiltersError(
                    f"{path.name}, line {number}: expected numbers or a line 'Filter N:', "
                    f"got {text[:60]!r}"
                ) from error
            if len(rows[-1]) != len(rows[0]):
                raise KeyFiltersError(
                    f"{path.name}, line {number}: expected {len(rows[0])} numbers as in the first "
                    f"row of {named[-1][0]!r}, got {len(rows[-1])}"
                )
    _refuse_empty(path, named)
    return [(name, np.array(rows, dtype=np.float64)) for name, rows in named]


def _refuse_empty(path: Path, named: list[tuple[str, list[list[float]]]]) -> None:
    if named and not named[-1][1]:
        raise KeyFiltersError(f"{path.name}: {named[-1][0]!r} has no rows")


def _arrays(path: Path, suffix: str) -> list[tuple[str, NDArray[np.float64]]]:
    try:
        loaded = _load_safetensors(path) if suffix == ".safetensors" else _load_numpy(path)
    except OSError:
        raise
    except Exception as error:  # damaged files make NumPy and zipfile raise nearly anything
        reason = str(error).split("\n")[0]
        raise KeyFiltersError(f"{path.name} is not a readable {suffix} file: {reason}") from error
    named: list[tuple[str, NDArray[np.float64]]] = []
    for key, array in loaded.items():
        if array.dtype.kind not in "fiu":
            raise KeyFiltersError(
                f"{path.name}: {key!r} holds {array.dtype}, expected real numbers"
            )
        if array.ndim == 4 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 2:
            named.append((key, array.astype(np.float64)))
        elif array.ndim == 3:
            named += [(f"{key} {i}", part) for i, part in enumerate(array.astype(np.float64), 1)]
        else:
            raise KeyFiltersError(
                f"{path.name}: {key!r} has shape {array.shape}, expected (n, k_y, k_x) or "
                "(k_y, k_x)"
            )
    return named


def _load_numpy(path: Path) -> dict[str, NDArray[np.generic]]:
    with path.open("rb") as file:  # NumPy leaves a damaged archive open that it opened itself
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"Filter": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}


def _load_safetensors(path: Path) -> dict[str, NDArray[np.generic]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # Through torch, because NumPy has no bfloat16.
    return {
        key: (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        for key, tensor in tensors.items()
    }

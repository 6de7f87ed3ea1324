"""A search that was cut off goes on: its steps, noted in a file as they are made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError, refuse_unwritten
from keyfilters.files import typed_path, write_whole

__all__ = ["ProgressFile", "digest_of"]


class ProgressFile:
    """Steps of a search, one line of JSON each.

    A file belongs to one search only: its name is the digest of all that the steps depend on, so
    that another search in the same folder starts anew.

    Args:
        folder: where the file lies; made if need be. None keeps nothing.
        identity: see `digest_of`.

    Attributes:
        steps: those of an earlier try; a last line that was cut off is none.

    Raises:
        KeyFiltersError: a file of an earlier try is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, identity: str) -> None:
        self.steps: list[dict[str, Any]] = []
        self._path = None if folder is None else typed_path(folder) / f"{identity[:16]}.jsonl"
        if self._path is None:
            return
        whole = ""
        if self._path.exists():
            whole, self.steps = _read(self._path)
        write_whole(self._path, whole)

    def add(self, step: dict[str, Any]) -> None:
        """Note a step.

        Raises:
            KeyFiltersError: the file cannot be written; the steps before stay.
        """
        if self._path is None:
            return
        with refuse_unwritten(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")


def _read(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the lines of a file that are whole, and the steps in them."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        steps = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(step, dict) for step in steps):
            raise ValueError("a line is no step")
    except (OSError, ValueError, RecursionError) as error:
        raise KeyFiltersError(f"{path} cannot be read ({error}); delete it") from error
    return whole, steps


def digest_of(parts: Iterable[object]) -> str:
    """SHA-256 of arrays and tensors (shape, type, numbers), and of all else as text.

    >>> digest_of([np.zeros(3)]) == digest_of([np.zeros(3)]), digest_of([1]) == digest_of([2])
    (True, False)
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(str(part.dtype).encode())  # numpy knows no bfloat16
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if isinstance(part, np.ndarray):
            total.update(f"{part.shape} {part.dtype}".encode())
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(str(part).encode())
        total.update(b"\0")
    return total.hexdigest()

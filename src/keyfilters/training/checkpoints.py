"""The state of a run on disk: written whole or not at all, continued by the same recipe only."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training.recipe import Recipe

__all__ = ["digest", "identity", "read_state", "write_state", "write_whole"]

NAME = "checkpoint.pt"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is at any moment the old or the new one, never a part.

    Raises:
        KeyFiltersError: it cannot be written; the old one is still there.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        kept = "; the last one is kept, and the same command goes on from it" * path.exists()
        raise KeyFiltersError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run; raises as `write_whole`."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_whole(out / NAME, content.getvalue())


def read_state(out: Path, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the checkpoint of a run, if there is one.

    Args:
        out: folder of the run.
        own: the `identity` of the run that wants to go on.

    Raises:
        KeyFiltersError: the checkpoint is damaged, or of another recipe, data or first weights.
    """
    path = out / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        there = state["identity"]
    except Exception as error:  # damaged files make pickle and zip raise nearly anything
        message = f"{path} is no checkpoint of this version ({type(error).__name__})"
        raise KeyFiltersError(f"{message}; delete it or choose another folder") from error
    ours, theirs = _flat(own), _flat(there)
    differ = [
        f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
        for key in dict.fromkeys([*theirs, *ours])
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        message = f"{path} is of another run ({'; '.join(differ)})"
        raise KeyFiltersError(f"{message}; choose another folder, or delete it")
    return state


def identity(recipe: Recipe, data: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return all on which the result depends: recipe, data and a digest of the first weights."""
    values = {key: value for key, value in recipe.to_dict().items() if key != "checkpoint"}
    return {**values, "images": dict(data), "first_weights": first}


def digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that tell the state of one module from another's.

    >>> digest(nn.Linear(2, 2)) == digest(nn.Linear(2, 2))
    False
    """
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    found.update(repr(frozen).encode())
    return found.hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found

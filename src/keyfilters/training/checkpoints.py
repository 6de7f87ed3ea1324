"""The state of a run on disk: written whole or not at all, continued by the same recipe only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.files import write_whole
from keyfilters.options import differing
from keyfilters.training.recipe import Recipe

__all__ = ["digest", "identity", "read_state", "write_state"]

NAME = "checkpoint.pt"


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
    if changed := differing(there, own):
        message = f"{path} is of another run, which differs in {'; '.join(changed)}"
        raise KeyFiltersError(f"{message}; choose another folder, or delete it")
    return state


def identity(recipe: Recipe, data: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return all on which the result depends: recipe, data and a digest of the first weights."""
    values = {key: value for key, value in recipe.to_dict().items() if key != "checkpoint"}
    values["data"].pop("workers")
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

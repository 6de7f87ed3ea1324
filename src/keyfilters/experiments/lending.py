"""What one run takes from another: its files, and weights that then stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError

__all__ = ["MODEL", "copy_weights_", "freeze_weights_", "lent"]

MODEL = "model.safetensors"


def lent(folder: Path, lender: str, name: str = MODEL) -> Path:
    """Return a file of another run of the same grid.

    Args:
        folder: of this run.
        lender: folder of the other, inside the grid's.
        name: of the file.

    >>> lent(Path("out/runs/frozen/seed-0"), "runs/learned/seed-1")
    PosixPath('out/runs/learned/seed-1/model.safetensors')
    """
    return folder.parents[2] / lender / name


def copy_weights_(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Overwrite weights by those of the same names in the state of another network."""
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])


def freeze_weights_(weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Freeze weights, by their names, as they are.

    Returns:
        What raises once one of them has moved.
    """
    for weight in weights.values():
        weight.requires_grad_(False)
    kept = {name: weight.clone() for name, weight in weights.items()}

    def check() -> None:
        moved = [name for name, x in weights.items() if not torch.equal(x, kept[name])]
        if moved:
            raise KeyFiltersError(f"weights were frozen, but moved: {', '.join(moved)}")

    return check

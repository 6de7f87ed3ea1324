"""The banks that the papers look at: filters of timm's ConvNeXts, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

import keyfilters.sources as sources
from keyfilters.bank import FilterBank
from keyfilters.clusters import Atlas
from keyfilters.errors import SourceError
from keyfilters.reproduction.figures import Inputs

__all__ = ["CONVNEXT", "CONVNEXT_V2", "atlas_of", "bank_of"]

CONVNEXT_V2 = tuple(
    f"convnextv2_{size}.fcmae_ft_in1k"
    for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
)
CONVNEXT = tuple(f"convnext_{size}.fb_in1k" for size in ("tiny", "small", "base", "large"))
# Of each family what is read from the hub; the papers read all.
FROM_HUB = ("convnextv2_tiny.fcmae_ft_in1k", "convnext_tiny.fb_in1k")


def bank_of(family: tuple[str, ...], inputs: Inputs) -> FilterBank:
    """Return the filters of the models of a family that can be had.

    Args:
        family: names of timm models.
        inputs: a folder, in which a model's file or folder starts with its name; or the hub, from
            which only the Tiny model of the family is read.

    Raises:
        SourceError: none of them is there.
    """
    if inputs.weights is None:
        found = [f"timm:{name}" for name in family if name in FROM_HUB]
    else:
        found = [str(path) for name in family if (path := _file(inputs.weights, name))]
        if not found:
            raise SourceError(
                f"{inputs.weights} holds no {family[0]} or the like; expected files or folders "
                f"named as timm names the models: {', '.join(family)}"
            )
    inputs.progress(f"reading {', '.join(Path(x).name for x in found)}")
    return sources.read(*found, progress=inputs.progress)


def atlas_of(family: tuple[str, ...], inputs: Inputs) -> Atlas:
    """Return the atlas of these filters, which several figures share."""
    found: Atlas = inputs.once(
        f"atlas of {family[0]}",
        lambda: Atlas(seed=inputs.seed).fit(bank_of(family, inputs), inputs.progress),
    )
    return found


def _file(folder: Path, name: str) -> Path | None:
    """Return the file or folder of a model: NAME, NAME.safetensors, timm/NAME, ….bin, ….pth."""
    for path in sorted([*folder.glob(f"{name}*"), *folder.glob(f"*/{name}*")]):
        if path.name == name or path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".npz"):
            return path
    return None

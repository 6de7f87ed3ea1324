"""The images that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyfilters.cli.common import typed
from keyfilters.cli.tables import say
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Images", "halves", "labelled", "refuse_count"]

Images = Annotated[
    str | None,
    typer.Option(
        help="Folder of unlabelled images, or photos for those that scikit-image and scikit-learn "
        "bring. Half of them choose, the other half measure.",
        show_default=False,
    ),
]


def refuse_count(context: typer.Context, images: str | None) -> None:
    """Raise a KeyFiltersError where --count was typed and no crops are taken from photos."""
    if images != "photos" and typed(context, "count"):
        raise KeyFiltersError("--count is for --images photos; leave it out")


def halves(images: str, model: nn.Module, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images to choose with and images to measure on, which share no pixel."""
    from keyfilters.training import photographs, random_crops

    size, normalised = _as_taken_by(model)
    if images == "photos":
        known = photographs()
        left, right = (
            random_crops(known, count, size, region=region, seed=seed)
            for region in ("left", "right")
        )
        return normalised(left), normalised(right)
    found = normalised(_folder(Path(images), size, ""))
    if len(found) < 2:
        raise KeyFiltersError(f"{images} holds one image; at least two are needed")
    return found[::2], found[1::2]


def labelled(images: str, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return all images of a folder of class folders, as a model takes them, and their classes.

    Raises:
        KeyFiltersError: no such folders, or their names say no class of the model.
    """
    import torch

    root = Path(images)
    folders = sorted(x for x in root.iterdir() if x.is_dir()) if root.is_dir() else []
    if not folders:
        raise KeyFiltersError(
            f"--criterion accuracy needs a folder with one folder a class; {images} has none"
        )
    classes = int(getattr(model, "num_classes", 0))
    if all(folder.name.isdecimal() for folder in folders):
        numbers = [int(folder.name) for folder in folders]
    elif len(folders) == classes:
        numbers = list(range(classes))
    else:
        raise KeyFiltersError(
            f"{images} has {len(folders)} folders, the model {classes} classes; name each folder "
            "by the number of its class"
        )
    size, normalised = _as_taken_by(model)
    parts = [normalised(_folder(folder, size, f"{folder.name}/")) for folder in folders]
    labels = [n for n, part in zip(numbers, parts, strict=True) for _ in range(len(part))]
    return torch.cat(parts), torch.tensor(labels)


def _as_taken_by(model: nn.Module) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Return the side of a model's images in pixels, and what normalises them."""
    from timm.data import resolve_model_data_config

    from keyfilters.training import normalise

    config: dict[str, Any] = resolve_model_data_config(model)
    mean, std = config["mean"], config["std"]
    return config["input_size"][-1], lambda images: normalise(images, mean, std)


def _folder(folder: Path, size: int, prefix: str) -> Tensor:
    from keyfilters.training import image_folder

    found, skipped = image_folder(folder, size=size)
    for name, reason in skipped:
        say(f"left out {prefix}{name}: {reason}", err=True)
    return found

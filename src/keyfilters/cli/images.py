"""The images that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Images", "halves", "labelled"]

Images = Annotated[
    str | None,
    typer.Option(
        help="Folder of unlabelled images, or photos for those that scikit-image and scikit-learn "
        "bring. Half of them choose, the other half measure. For timm: models only.",
        show_default=False,
    ),
]


def halves(images: str, model: nn.Module, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images to choose with and images to measure on, which share no pixel."""
    from timm.data import resolve_model_data_config

    from keyfilters.training import image_folder, normalise, photographs, random_crops

    config: dict[str, Any] = resolve_model_data_config(model)
    size = config["input_size"][-1]
    if images == "photos":
        known = photographs()
        parts = [
            random_crops(known, count, size, region=region, seed=seed)
            for region in ("left", "right")
        ]
    else:
        found, skipped = image_folder(Path(images), size=size)
        for name, reason in skipped:
            typer.echo(f"left out {name}: {reason}", err=True)
        if len(found) < 2:
            raise KeyFiltersError(f"{images} holds one image; at least two are needed")
        parts = [found[::2], found[1::2]]
    own, others = (normalise(part, config["mean"], config["std"]) for part in parts)
    return own, others


def labelled(images: str, model: nn.Module) -> tuple[Tensor, Tensor]:
    """All images of a folder of class folders, as a model takes them, and their classes.

    Raises:
        KeyFiltersError: no such folders, or their names say no class of the model.
    """
    import torch
    from timm.data import resolve_model_data_config

    from keyfilters.training import image_folder, normalise

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
    config: dict[str, Any] = resolve_model_data_config(model)
    parts, labels = [], []
    for folder, number in zip(folders, numbers, strict=True):
        found, skipped = image_folder(folder, size=config["input_size"][-1])
        for name, reason in skipped:
            typer.echo(f"left out {folder.name}/{name}: {reason}", err=True)
        parts.append(normalise(found, config["mean"], config["std"]))
        labels += [number] * len(found)
    return torch.cat(parts), torch.tensor(labels)

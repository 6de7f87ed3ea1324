"""Labelled images to train with, by name.

They are held in memory, which fits what this package mostly trains on (60,000 images of 28×28 are
47 MB, 60,000 of 224×224 in colour 9 GB); what does not fit is refused with its size. Folders of
images can be streamed instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.data import refusal
from keyfilters.training.labelled import Data, StreamedData
from keyfilters.training.readers import READERS
from keyfilters.training.splits import Request, Split, stratified

__all__ = ["Data", "load_data"]

SIDE = 224  # of streamed images in pixels, where none is asked for
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as timm has them


def load_data(
    name: str = "digits",
    *,
    classes: Sequence[str | int] = (),
    samples: int = 0,
    channels: int = 0,
    resolution: int = 0,
    root: str | os.PathLike[str] = "",
    unreadable: str = "skip",
    seed: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stream: bool = False,
    workers: int = 4,
) -> Data:
    """Load a data set by name.

    - ``digits``: scikit-learn's 1,797 handwritten digits of 8×8, always there.
    - ``fashion-mnist``: from Debian's package dataset-fashion-mnist; ``fashion-mnist:FOLDER`` from
      a folder with the IDX files, packed or not, as torchvision leaves them.
    - ``photos``: crops of seven photographs, whose label is the photograph; training crops come
      from the left halves, test crops from the right halves.
    - ``imagefolder:FOLDER``: FOLDER/train/CLASS/… and, where there is one, FOLDER/val/CLASS/…
      (or valid, validation, test); or FOLDER/CLASS/….
    - ``torchvision:NAME``: a class of torchvision.datasets, already downloaded below `root`.
    - ``hf:NAME``: a data set of the Hugging Face hub, or its folder; needs the extra hf. Where it
      has several columns of labels, ``hf:NAME#COLUMN`` chooses. Images without a label are left
      out.

    Where a source has no labelled test images, a fifth of each class is kept for them: the same
    with every seed, so that no network was trained on what another is tested on.

    Args:
        name: as above.
        classes: names or numbers of those to keep, in this order; empty keeps all.
        samples: number of training images, drawn by `seed` in the proportions of the classes; 0
            takes all (of photos: 1,400).
        channels: 1 (mean of the channels) or 3 (grey repeated); 0 leaves them.
        resolution: side of the images in pixels; 0 leaves it, or is 64 for photos and 224 for
            images of unequal size, which are cut to their middle square.
        root: folder of torchvision's data sets.
        unreadable: "skip" names damaged images in `Data.skipped`, "stop" refuses them.
        seed: of samples and crops.
        mean: with which images are normalised, one number a channel on the scale from 0 to 1; empty
            computes that of the training images, or where they are streamed takes ImageNet's.
        std: likewise.
        stream: leave the images of a folder in their files until a batch needs them; damaged ones
            are met in training. Returns `StreamedData`.
        workers: number of processes that decode streamed images, for each that trains; 0 decodes
            in the process itself.

    Raises:
        KeyFiltersError: an unknown name or class, missing files, an option out of range, images
            that cannot be read, or more than fit into memory.
        MissingExtraError: a package is needed that is not installed.

    >>> data = load_data("digits", classes=["3", "8"], samples=100)
    >>> data.images.shape, data.classes, data.labels.bincount().tolist()
    (torch.Size([100, 1, 8, 8]), ('3', '8'), [51, 49])
    """
    kind, _, argument = name.partition(":")
    if kind not in READERS:
        known = f"no data set is called {name!r}; {', '.join(READERS)} are known"
        raise KeyFiltersError(known + nearest(kind, READERS))
    if samples < 0 or resolution < 0 or channels not in (0, 1, 3):
        got = f"samples {samples}, resolution {resolution}, channels {channels}"
        raise KeyFiltersError(f"{got}; 0 or more, 0 or more and 0, 1 or 3 are expected")
    if unreadable not in ("skip", "stop"):
        raise KeyFiltersError(f"unreadable is {unreadable!r}; skip or stop is expected")
    if workers < 0:
        raise KeyFiltersError(f"workers is {workers}; 0 or more is expected")
    if stream and (kind != "imagefolder" or channels == 1):
        got = f"stream is true for {name} with {channels or 3} channels"
        raise KeyFiltersError(f"{got}; only imagefolder:FOLDER in colour can be streamed")
    request = Request(argument, samples, len(classes), resolution, str(root), seed)
    train, test, names = READERS[kind](request)
    chosen = _chosen(classes, names, name)
    own = tuple(names[i] for i in chosen)
    skipped: list[tuple[str, str]] = []
    parts: list[Tensor] = []
    files: list[NDArray[np.bytes_]] = []
    for split, count in ((train, samples), (test, 0)):
        rows, labels = _rows(split, chosen, count, name, seed)
        if stream:
            images, kept = _unread(argument, split.files[rows], resolution or SIDE, skipped)
            files.append(split.files[rows[kept]])
        else:
            images, kept = split.read(rows, skipped)
        if skipped and unreadable == "stop":
            raise KeyFiltersError(f"{name}: {skipped[0][0]} cannot be read ({skipped[0][1]})")
        images = images if stream else _shaped(images, channels, resolution)
        parts += [images, torch.from_numpy(labels[kept])]
    left, moments = tuple(skipped), (tuple(mean), tuple(std))
    if not stream:
        return Data(name, parts[0], parts[1], parts[2], parts[3], own, *moments, left)
    return StreamedData(
        name, parts[0], parts[1], parts[2], parts[3], own,
        moments[0] or MEAN, moments[1] or STD, left,
        argument, files[0], files[1], unreadable, workers,
    )  # fmt: skip


def _unread(
    folder: str, files: NDArray[np.bytes_], side: int, skipped: list[tuple[str, str]]
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the shape of the images of some files, and which of the files are images by name."""
    kept = []
    for i, file in enumerate(files.tolist()):
        path = PurePath(folder, os.fsdecode(file))
        if reason := refusal(path.suffix):
            skipped.append((str(path), reason))
        else:
            kept.append(i)
    images = torch.empty(len(kept), 3, side, side, dtype=torch.uint8, device="meta")
    return images, np.array(kept, dtype=np.int64)


def _chosen(classes: Sequence[str | int], names: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the classes asked for."""
    chosen = []
    for asked in classes:
        if str(asked) in names:
            chosen.append(list(names).index(str(asked)))
        elif isinstance(asked, int) and 0 <= asked < len(names):
            chosen.append(asked)
        else:
            shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
            message = f"{name} has no class {asked!r}; its {len(names)} classes are: {shown}"
            raise KeyFiltersError(message + nearest(str(asked), names))
    if len(set(chosen)) < len(chosen):
        raise KeyFiltersError(f"classes names one twice: {', '.join(map(str, classes))}")
    return chosen or list(range(len(names)))


def _rows(
    split: Split, chosen: Sequence[int], count: int, name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the images to read, and their labels among the chosen."""
    new = np.full(max(int(split.labels.max(initial=0)), *chosen) + 1, -1)
    new[list(chosen)] = np.arange(len(chosen))
    labels = np.where(split.labels < 0, -1, new[split.labels])  # below 0: of no class
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise KeyFiltersError(f"{name} has no image of these classes")
    if count > len(rows):
        raise KeyFiltersError(f"{name} has {len(rows)} training images; samples is {count}")
    if count:
        rows = rows[stratified(labels[rows], count, seed)]
    return rows, labels[rows].astype(np.int64)


def _shaped(images: Tensor, channels: int, resolution: int) -> Tensor:
    """Change the number of channels and the side of uint8 images, in pieces."""

    def change(part: Tensor) -> Tensor:
        if channels == 1 and part.shape[1] > 1:
            part = part.float().mean(1, keepdim=True).round().byte()
        if resolution and part.shape[-2:] != (resolution, resolution):
            part = functional.interpolate(
                part.float(), (resolution, resolution), mode="bilinear", antialias=True
            )
            part = part.round().clamp(0, 255).byte()
        if channels == 3 and part.shape[1] == 1:
            part = part.expand(-1, 3, -1, -1)
        return part

    if change(images[:1]).shape == images[:1].shape:
        return images  # not copied: it may fill half of the memory
    return torch.cat([change(part) for part in images.split(1024)])

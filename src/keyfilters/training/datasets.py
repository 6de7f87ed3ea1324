"""Labelled images to train with, by name, as tensors in memory.

One representation serves every source: uint8 ``(n, c, h, w)`` and integer labels. It fits what
this package trains on (60,000 images of 28×28 are 47 MB, 60,000 of 224×224 in colour 9 GB); what
does not fit is refused with its size, not streamed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.readers import READERS
from keyfilters.training.splits import Request, Split, stratified

__all__ = ["Data", "load_data"]


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels to train with and to test on.

    Attributes:
        name: where they come from, such as ``"digits"``.
        images: to train with, ``(n, c, h, w)`` uint8.
        labels: of `images`, ``(n,)`` int64 from 0 on.
        test_images: to test on, ``(m, c, h, w)`` uint8.
        test_labels: of `test_images`, ``(m,)`` int64.
        classes: the name of every label.
        mean: of `images`, one number a channel, on the scale from 0 to 1; computed if empty.
        std: likewise; 1 for a channel that is constant.
        skipped: (name, reason) of every image that could not be read.

    Raises:
        KeyFiltersError: tensors of another type or shape, or a label without a class.

    >>> zeros = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    >>> data = Data("made", zeros, torch.tensor([0, 1, 0, 1]), zeros, torch.zeros(4).long(), "ab")
    >>> data.mean, data.std
    ((0.0,), (1.0,))
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: Sequence[str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for what, images, labels in (
            ("training", self.images, self.labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
                got = f"{images.dtype} of shape {tuple(images.shape)}"
                raise KeyFiltersError(f"{what} images are {got}; uint8 (n, c, h, w) is expected")
            if labels.dtype != torch.int64 or labels.shape != (len(images),):
                got = f"{labels.dtype} of shape {tuple(labels.shape)}"
                raise KeyFiltersError(f"{what} labels are {got}; int64 ({len(images)},) expected")
            if int(labels.min()) < 0 or int(labels.max()) >= len(self.classes):
                got = f"from {int(labels.min())} to {int(labels.max())}"
                expected = f"0 to {len(self.classes) - 1} are expected"
                raise KeyFiltersError(f"{what} labels go {got}; {expected}, one a class")
        if self.images.shape[1:] != self.test_images.shape[1:]:
            got = f"{tuple(self.images.shape[1:])} and {tuple(self.test_images.shape[1:])}"
            raise KeyFiltersError(f"training and test images are {got}; one shape is expected")
        if not self.mean or not self.std:
            mean, std = _moments(self.images)
            object.__setattr__(self, "mean", self.mean or mean)
            object.__setattr__(self, "std", self.std or std)

    def describe(self) -> dict[str, Any]:
        """Return what tells one data set from another, to write beside a result."""
        tensors = {
            "images": self.images,
            "labels": self.labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }
        return {
            "name": self.name,
            "images": list(self.images.shape),
            "test_images": list(self.test_images.shape),
            "classes": list(self.classes),
            **{f"{what}_crc32": crc32(x.contiguous().numpy().data) for what, x in tensors.items()},
            "mean": [round(x, 6) for x in self.mean],
            "std": [round(x, 6) for x in self.std],
            "skipped": [list(one) for one in self.skipped],
        }


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
    request = Request(argument, samples, len(classes), resolution, str(root), seed)
    train, test, names = READERS[kind](request)
    chosen = _chosen(classes, names, name)
    skipped: list[tuple[str, str]] = []
    parts: list[Tensor] = []
    for split, count in ((train, samples), (test, 0)):
        rows, labels = _rows(split, chosen, count, name, seed)
        images, kept = split.read(rows, skipped)
        if skipped and unreadable == "stop":
            raise KeyFiltersError(f"{name}: {skipped[0][0]} cannot be read ({skipped[0][1]})")
        parts += [_shaped(images, channels, resolution), torch.from_numpy(labels[kept])]
    own = tuple(names[i] for i in chosen)
    return Data(name, parts[0], parts[1], parts[2], parts[3], own, skipped=tuple(skipped))


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


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel on the scale from 0 to 1."""
    count = images.numel() // images.shape[1]
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64)  # exact, in any order
    for part in images.split(1024):
        x = part.long()
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean = sums[0].double() / (255 * count)
    std = (sums[1].double() / (255**2 * count) - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(x if x > 1e-6 else 1.0 for x in std.tolist())

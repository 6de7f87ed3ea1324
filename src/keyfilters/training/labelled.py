"""Labelled images to train with: held in memory, or left in their files.

One representation serves every source: uint8 ``(n, c, h, w)`` and integer labels. Where the images
are left in their files, only the labels and the names are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError

__all__ = ["Data", "StreamedData"]


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
        std: likewise; where it is computed, 1 for a channel that is constant.
        skipped: (name, reason) of every image that could not be read.

    Raises:
        KeyFiltersError: tensors of another type or shape, a label without a class, or a mean or
            std that does not fit the channels.

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
        channels = self.images.shape[1]
        for what, values in (("mean", self.mean), ("std", self.std)):
            fit = [isinstance(x, int | float) and isfinite(x) for x in values]
            if len(values) != channels or not all(fit) or (what == "std" and min(values) <= 0):
                expected = f"{channels} numbers are expected, one a channel, those of std above 0"
                raise KeyFiltersError(f"{what} is {list(values)}; {expected}")

    def describe(self) -> dict[str, Any]:
        """Return what tells one data set from another, to write beside a result."""
        return {
            "name": self.name,
            "images": list(self.images.shape),
            "test_images": list(self.test_images.shape),
            "classes": list(self.classes),
            **{f"{what}_crc32": crc32(x) for what, x in self._contents().items()},
            "mean": [round(x, 6) for x in self.mean],
            "std": [round(x, 6) for x in self.std],
            "skipped": [list(one) for one in self.skipped],
        }

    def _contents(self) -> Mapping[str, Any]:
        """Return all bytes that make this data set, by name."""
        tensors = {
            "images": self.images,
            "labels": self.labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }
        return {what: x.contiguous().numpy().data for what, x in tensors.items()}


@dataclass(frozen=True, eq=False)
class StreamedData(Data):
    """Images that stay in their files until a batch needs them.

    `images` and `test_images` are tensors of device meta, which have a shape and no content.

    Attributes:
        folder: in which the files lie.
        files: to train with, ``(n,)`` names below `folder` as the file system has them, in bytes: a
            million strings would be copied into every process that decodes.
        test_files: to test on, ``(m,)``.
        unreadable: what is done with a damaged file when its turn comes: "skip" or "stop".
        workers: number of processes that decode for each process that trains; 0 decodes there.
    """

    folder: str = ""
    files: NDArray[np.bytes_] = field(default_factory=lambda: np.array([], "S1"), repr=False)
    test_files: NDArray[np.bytes_] = field(default_factory=lambda: np.array([], "S1"), repr=False)
    unreadable: str = "skip"
    workers: int = 0

    def _contents(self) -> Mapping[str, Any]:
        return {
            "files": self.files.tobytes(),
            "labels": self.labels.numpy().tobytes(),
            "test_files": self.test_files.tobytes(),
            "test_labels": self.test_labels.numpy().tobytes(),
        }


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

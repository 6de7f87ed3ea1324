"""`Data`: the images of a run in their parts, and `load_data`, which makes them by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional

from keyfilters.errors import KeyFiltersError
from keyfilters.threads import one_thread_if_forked
from keyfilters.training.dataset import Images
from keyfilters.training.images import Failed
from keyfilters.training.parts import find_parts, first_side
from keyfilters.training.readers import Items
from keyfilters.training.recipe import Recipe

__all__ = ["Data", "load_data"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as timm has them


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels to train with, to choose the best epoch by, and to test on.

    Attributes:
        name: where they come from, such as ``"digits"``.
        images: to train with, ``(n, c, h, w)`` uint8; of device meta if they are streamed.
        labels: of `images`, ``(n,)`` int64 from 0 on.
        test_images: to test on in the end, ``(m, c, h, w)`` uint8.
        test_labels: of `test_images`, ``(m,)`` int64.
        classes: the name of every label.
        mean: of `images`, one number a channel, on the scale from 0 to 1; computed if empty.
        std: likewise; where it is computed, 1 for a channel that is constant.
        skipped: (name, reason) of every image that could not be read.
        validation_images: looked at after every epoch, ``(k, c, h, w)`` uint8; None: there is none.
        validation_labels: of `validation_images`, ``(k,)`` int64.
        items: of streamed data, the images of the parts train, validation and test.
        unreadable: what is done with a damaged streamed image: "skip" or "stop".
        workers: processes that decode streamed images, for each that trains; 0 decodes there.

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
    validation_images: Tensor | None = field(default=None, repr=False)
    validation_labels: Tensor | None = field(default=None, repr=False)
    items: Mapping[str, Items] = field(default_factory=dict, repr=False)
    unreadable: str = "skip"
    workers: int = 0

    def __post_init__(self) -> None:
        for what, (images, labels) in self.parts().items():
            self._check(what, images, labels)
        if not self.mean or not self.std:
            mean, std = (MEAN, STD) if self.items else _moments(self.images)
            object.__setattr__(self, "mean", self.mean or mean)
            object.__setattr__(self, "std", self.std or std)
        channels = self.images.shape[1]
        for what, values in (("mean", self.mean), ("std", self.std)):
            fit = [isinstance(x, int | float) and isfinite(x) for x in values]
            if len(values) != channels or not all(fit) or (what == "std" and min(values) <= 0):
                expected = f"{channels} numbers are expected, one a channel, those of std above 0"
                raise KeyFiltersError(f"{what} is {list(values)}; {expected}")

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return images and labels of train, test and, if there is one, validation."""
        found = {
            "training": (self.images, self.labels),
            "test": (self.test_images, self.test_labels),
        }
        if self.validation_images is not None and self.validation_labels is not None:
            found["validation"] = (self.validation_images, self.validation_labels)
        return found

    def dataset(self, part: str, recipe: Recipe, device: torch.device) -> Images:
        """Return a part as a data set of torch; that of training is changed by the recipe.

        Raises:
            KeyFiltersError: an augmentation that these images do not get.
        """
        images, labels = self.parts()[part]
        for name, value in recipe.augmentation.changed().items():
            if name in ("scale", "auto_augment", "interpolation") and not self.items:
                got = f"augmentation.{name} is {value!r} for images that are held in memory"
                raise KeyFiltersError(f"{got}; set data.stream=true, or leave it out")
        source = self.items[part] if self.items else images.to(device)
        labels = labels if self.items else labels.to(device)
        training, stop = part == "training", self.unreadable == "stop"
        return Images(source, labels, images.shape[-1], recipe, change=training, stop=stop)

    def describe(self) -> dict[str, Any]:
        """Return what tells one data set from another, to write beside a result."""
        sums = {}
        for part, (images, labels) in self.parts().items():
            content: Any = images.contiguous().numpy().data if part not in self.items else b""
            if part in self.items:
                items = self.items[part]
                content = b"\0".join(os.fsencode(items.path(i)) for i in range(len(items)))
            sums[f"{part}_crc32"] = [crc32(content), crc32(labels.numpy().data)]
        return {
            "name": self.name,
            **{part: list(images.shape) for part, (images, _) in self.parts().items()},
            "classes": list(self.classes),
            **sums,  # of images, or where they are streamed their names; of labels
            "mean": [round(x, 6) for x in self.mean],
            "std": [round(x, 6) for x in self.std],
            "skipped": [list(one) for one in self.skipped],
        }

    def _check(self, what: str, images: Tensor, labels: Tensor) -> None:
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
        if images.shape[1:] != self.images.shape[1:]:
            got = f"{tuple(images.shape[1:])}, those of training {tuple(self.images.shape[1:])}"
            raise KeyFiltersError(f"{what} images are {got}; one shape is expected")


@one_thread_if_forked()
def load_data(name: str = "digits", **options: Any) -> Data:
    """Load a data set by name.

    - ``digits``: scikit-learn's 1,797 handwritten digits of 8×8, always there.
    - ``fashion-mnist``: from Debian's package dataset-fashion-mnist; ``fashion-mnist:FOLDER`` from
      a folder with the IDX files, packed or not, as torchvision leaves them.
    - ``photos``: crops of seven photographs, whose label is the photograph; training crops come
      from the left halves, test crops from the right halves.
    - ``imagefolder:FOLDER``: FOLDER/train/CLASS/… and, where they exist, FOLDER/val/CLASS/… (or
      valid, validation) and FOLDER/test/CLASS/…; or FOLDER/CLASS/….
    - ``torchvision:NAME``: a class of torchvision.datasets, already downloaded below `root`.
    - ``hf:NAME``: a data set of the Hugging Face hub, or its folder; needs the extra hf, but for a
      folder of parquet files, which are read in place. Of several columns of labels,
      ``hf:NAME#COLUMN`` chooses one. Images without a label are left out.

    Where a source has no labelled test images, its validation images or a fifth of each class are
    kept for testing: the same with every seed, so that no network was trained on what another is
    tested on.

    Args:
        name: as above.
        options: fields of `DataSource`, which says what they mean: classes, samples, channels,
            resolution, root, unreadable, seed, mean, std, validation (here 0 by default), stream
            and workers.

    Raises:
        KeyFiltersError: an unknown name or class, missing files, an option out of range, images
            that cannot be read, or more than fit into memory.
        MissingExtraError: a package is needed that is not installed.

    >>> data = load_data("digits", classes=["3", "8"], samples=100)
    >>> data.images.shape, data.classes, data.labels.bincount().tolist()
    (torch.Size([100, 1, 8, 8]), ('3', '8'), [51, 49])
    """
    options = {"validation": 0.0, **options, "root": str(options.get("root", ""))}
    asked = Recipe.from_dict({"data": {"name": name, **options}}).data
    skipped: Failed = []
    parts, classes = find_parts(asked, skipped)
    items = {part: x.images for part, x in parts.items() if isinstance(x.images, Items)}
    side = asked.resolution or (first_side(items["training"]) if items else 0)
    tensors: dict[str, Any] = {}
    for part, found in parts.items():
        prefix = "" if part == "training" else f"{part}_"
        tensors[f"{prefix}labels"] = torch.from_numpy(found.labels)
        if isinstance(found.images, Items):
            shape = (len(found.labels), 3, side, side)
            tensors[f"{prefix}images"] = torch.empty(shape, dtype=torch.uint8, device="meta")
        else:
            tensors[f"{prefix}images"] = _shaped(found.images, asked.channels, side)
    return Data(
        name, **tensors, classes=classes, mean=asked.mean, std=asked.std, skipped=tuple(skipped),
        items=items, unreadable=asked.unreadable, workers=asked.workers,
    )  # fmt: skip


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
        return part.expand(-1, 3, -1, -1) if channels == 3 and part.shape[1] == 1 else part

    if change(images[:1]).shape == images[:1].shape:
        return images  # not copied: it may fill half of the memory
    return torch.cat([change(part) for part in images.split(1024)])


@one_thread_if_forked()
def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel on the scale from 0 to 1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ levels))
        std.append(float(share @ (levels - mean[-1]).square()) ** 0.5)
    return tuple(mean), tuple(x if x > 1e-6 else 1.0 for x in std)

"""Labelled images, in memory or decoded while the network trains, as data sets of torch.

A batch is read at once (``__getitems__``), so images in memory cost no Python each. What is drawn
for an image is a function of the seed, the epoch and its number, since accelerate's checkpoints do
not hold the random states of workers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from keyfilters.errors import KeyFiltersError
from keyfilters.seeds import child_integer, child_seed
from keyfilters.training.images import Failed, pixels, square, why
from keyfilters.training.processes import own_randomness
from keyfilters.training.readers import Items
from keyfilters.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Images", "crop_and_flip"]

CROP_SHARE = 0.875  # of the short side of a test image, timm's usual crop_pct
TRIES = 50  # images in a row; if none of them can be read, the run ends

Batch: TypeAlias = tuple[Tensor, Tensor, Failed]  # uint8 (b, c, h, w), int64 (b,)


class Images(Dataset[Batch]):
    """Images of one part: ``(n, c, h, w)`` uint8 in memory, or items decoded to squares.

    Where there is a `change`, they are changed by it, and another image that is drawn stands in for
    an item that cannot be read; otherwise it is left out. With `stop`, it ends the batch.

    Raises:
        KeyFiltersError: timm does not know the policy ``auto_augment``.
    """

    def __init__(
        self,
        images: Tensor | Items,
        labels: Tensor,
        side: int,
        recipe: Recipe,
        *,
        change: bool = False,
        stop: bool = False,
    ) -> None:
        self.images, self.labels, self.side, self.stop = images, labels, side, stop
        self.change, self.seed = recipe.augmentation if change else None, recipe.seed
        self.epoch, self._drawn = 0, -1
        if isinstance(images, Items):
            self.transform = _transform(side, recipe.augmentation, change)

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from now on."""
        self.epoch = epoch

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        source, kept, failed = self.images, numbers, list[tuple[str, str]]()
        if isinstance(source, Items):
            images, kept, failed = self._decode(source, numbers)
        else:
            images = source[torch.as_tensor(numbers, device=source.device)]
        rows = torch.as_tensor(kept, dtype=torch.int64, device=self.labels.device)
        if self.change is not None and (self.change.crop or self.change.flip):
            if self._drawn != self.epoch:
                self._draw(self.change, images.device)
            corner, mirror = self._corner[:, rows], self._mirror[rows]
            images = crop_and_flip(images, corner, mirror, self.change.crop)
        return images, self.labels[rows], failed

    def _draw(self, change: Augmentation, device: torch.device) -> None:
        """Draw corner and mirror of all images of an epoch."""
        generator = torch.Generator().manual_seed(child_integer(self.seed, "crop", self.epoch))
        corner = torch.randint(0, 2 * change.crop + 1, (2, len(self)), generator=generator)
        mirror = (torch.rand(len(self), generator=generator) < 0.5) & change.flip
        self._corner, self._mirror, self._drawn = corner.to(device), mirror.to(device), self.epoch

    def _decode(self, items: Items, numbers: Sequence[int]) -> tuple[Tensor, Sequence[int], Failed]:
        """Return images, the number of each, and what could not be read."""
        images = torch.empty(len(numbers), 3, self.side, self.side, dtype=torch.uint8)
        kept, failed = list[int](), list[tuple[str, str]]()
        with own_randomness(torch.device("cpu")):  # without workers, it is the caller's
            for number in numbers:
                for other in [number, *self._others(number)]:
                    try:
                        images[len(kept)] = self._changed(items.image(other), other)
                        kept.append(other)
                        break
                    except Exception as error:  # damaged files make decoders raise nearly anything
                        failed.append((str(items.path(other)), why(error)))
                    if self.stop:
                        return images[:0], [], failed
        return images[: len(kept)], kept, failed

    def _changed(self, image: Image, number: int) -> Tensor:
        if self.change is not None:
            seed = child_integer(self.seed, "image", self.epoch, number)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
        return pixels(self.transform(image.convert("RGB")))

    def _others(self, number: int) -> list[int]:
        """Draw the images that may stand in for one that cannot be read."""
        seed = child_seed(self.seed, "stand-in", self.epoch, number)
        tries = 0 if self.change is None else TRIES
        return np.random.default_rng(seed).integers(len(self), size=tries).tolist()


def _transform(side: int, change: Augmentation, training: bool) -> Callable[[Image], Image]:
    from timm.data import create_transform
    from torchvision.transforms import Compose

    still = "bicubic" if change.interpolation == "random" else change.interpolation
    if not training:
        made = create_transform(side, crop_pct=CROP_SHARE, interpolation=still)
        return Compose(made.transforms[:2])  # resize and crop
    try:
        cut, policy, _ = create_transform(
            side,
            is_training=True,
            scale=(change.scale or 1.0, 1.0),
            hflip=0.0,  # done for the whole batch, as for images in memory
            color_jitter=None,
            auto_augment=change.auto_augment or None,
            interpolation=change.interpolation,
            separate=True,
        )
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        got = f"augmentation.auto_augment is {change.auto_augment!r}"
        expected = "one of timm's policies is expected, such as rand-m9-mstd0.5-inc1"
        raise KeyFiltersError(f"{got}; {expected}") from error
    for step in getattr(policy, "transforms", ()):
        for op in [*getattr(step, "ops", ()), *chain(*getattr(step, "policy", ()))]:
            if getattr(getattr(op, "aug_fn", None), "__name__", "") == "posterize":
                op.aug_fn = _posterize
    return Compose([cut if change.scale else partial(square, size=side, how=still), policy])


def _posterize(image: Image, bits_to_keep: int, **_: Any) -> Image:
    """Keep the upper bits of each byte as timm does, also none, which Pillow 13 refuses."""
    return image.point(lambda x: x & ~(0xFF >> max(bits_to_keep, 0)))


def crop_and_flip(images: Tensor, corner: Tensor, mirror: Tensor, border: int) -> Tensor:
    """Surround images ``(n, c, h, w)`` with black and cut each anew, mirrored or not.

    `corner` ``(2, n)`` has row and column of the upper left pixel, from 0 to 2 · border.

    >>> images = torch.arange(4).reshape(1, 1, 2, 2)
    >>> crop_and_flip(images, torch.tensor([[1], [1]]), torch.tensor([True]), 1)
    tensor([[[[1, 0],
              [3, 2]]]])
    """
    count, channels, height, width = images.shape
    wide = functional.pad(images, (border,) * 4)
    rows = torch.arange(height, device=images.device) + corner[0, :, None]
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + corner[1, :, None]
    index = rows[:, :, None] * wide.shape[3] + columns[:, None, :]
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    return wide.flatten(2).gather(2, index).view(count, channels, height, width)

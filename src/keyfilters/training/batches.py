"""The batches of one process, from images that lie on the device or are streamed to it.

Everything random here is a function of the recipe's seed and the number of the step, and shared
out after it was drawn for the whole batch: an interruption, or another number of processes, leaves
the order of the images and their crops as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from keyfilters.errors import KeyFiltersError
from keyfilters.training.labelled import Data, StreamedData
from keyfilters.training.order import epoch_order
from keyfilters.training.recipe import Augmentation, Recipe
from keyfilters.training.streaming import Streamed

__all__ = ["Batches", "crop_and_flip"]


class Batches:
    """Training batches by step and part, and test batches, of one of several processes.

    Args:
        recipe: says how large batches are and what is done to images.
        data: the images.
        device: where they go as uint8, all at once unless they are streamed.
        process: number of this process.
        processes: how many there are.

    Raises:
        KeyFiltersError: a batch that is larger than the data, cannot be shared out evenly, or is
            odd where images are mixed in pairs; a change that held images do not get.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        size, parts = recipe.batch.size, recipe.batch.accumulation
        self.per_epoch = len(data.images) // size
        if self.per_epoch == 0:
            got = f"batch.size is {size}, more than the {len(data.images)} training images"
            raise KeyFiltersError(f"{got}; set a smaller batch.size")
        if size % (parts * processes):
            got = f"batch.size {size} for {processes} processes of {parts} parts each"
            raise KeyFiltersError(f"{got}; a multiple of {parts * processes} is expected")
        self.part_size = size // (parts * processes)
        self.parts, self._first = parts, process * parts
        self._recipe, self._device, self._epoch = recipe, device, -1
        self._count, tests = len(data.images), len(data.test_images)
        share = slice(tests * process // processes, tests * (process + 1) // processes)
        starts = [
            place * size + (self._first + part) * self.part_size
            for place in range(self.per_epoch)
            for part in range(parts)
        ]
        self._turns = [slice(start, start + self.part_size) for start in starts]
        self._images: Streamed | _Held
        if isinstance(data, StreamedData):
            self._images = Streamed(recipe, data, device, self._turns, share)
        else:
            _refuse_streamed_changes(recipe.augmentation)
            self._images = _Held(recipe.seed, data, device, self._turns, share)
        mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (data.mean, data.std))
        self._shift, self._scale = 255 * mean, 1 / (255 * std)
        change = recipe.augmentation
        self._erase, self._mix = None, None
        if change.erasing:
            self._erase = RandomErasing(change.erasing, mode="pixel", device=device)
        if change.mixup or change.cutmix:
            if self.part_size % 2:
                got = f"parts of {self.part_size} images cannot be mixed in pairs"
                raise KeyFiltersError(f"{got}; set an even batch.size")
            self._mix = Mixup(
                mixup_alpha=change.mixup,
                cutmix_alpha=change.cutmix,
                label_smoothing=change.label_smoothing,
                num_classes=len(data.classes),
            )

    def part(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part of a step, and seed what the model will draw.

        Images are ``(b, c, h, w)`` float32, normalised; labels ``(b,)`` integers, or where images
        were mixed ``(b, classes)`` shares.
        """
        epoch, place = divmod(step, self.per_epoch)
        turn = place * self.parts + part
        x, y = self._images.take(epoch, turn)
        if self._recipe.augmentation.crop or self._recipe.augmentation.flip:
            if epoch != self._epoch:
                self._draw(epoch)
            rows, border = self._turns[turn], self._recipe.augmentation.crop
            x = crop_and_flip(x, self._corner[:, rows], self._mirror[rows], border)
        x = self._normal(x)
        entropy = (self._recipe.seed, step, self._first + part)
        words = np.random.SeedSequence(entropy).generate_state(2)
        torch.manual_seed(int(words[0]))
        if self._erase is not None or self._mix is not None:  # timm draws from global generators
            random.seed(int(words[0]))
            np.random.seed(int(words[1]))  # noqa: NPY002
        if self._erase is not None:
            x = self._erase(x)
        if self._mix is not None:
            x, y = self._mix(x, y)
        return x, y

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the test images, normalised, with labels on the CPU."""
        for x, y in self._images.test(self.part_size):
            yield self._normal(x), y

    @property
    def skipped(self) -> dict[str, str]:
        """Name → reason of the images that could not be read so far."""
        return self._images.skipped

    def _draw(self, epoch: int) -> None:
        """Draw corners and mirrors of all images of an epoch."""
        count, border = self._count, self._recipe.augmentation.crop
        _, generator = epoch_order(self._recipe.seed, epoch, count)
        corner = torch.randint(0, 2 * border + 1, (2, count), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        if not self._recipe.augmentation.flip:
            mirror[:] = False
        self._corner, self._mirror = corner.to(self._device), mirror.to(self._device)
        self._epoch = epoch

    def _normal(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self._recipe.channels_last else torch.contiguous_format
        x = images.to(torch.float32, memory_format=layout)
        return x.sub_(self._shift).mul_(self._scale)


class _Held:
    """The images of one of several processes, which lie on the device."""

    def __init__(
        self, seed: int, data: Data, device: torch.device, turns: Sequence[slice], share: slice
    ) -> None:
        self.skipped: dict[str, str] = {}
        self._seed, self._turns, self._epoch = seed, turns, -1
        self._images, self._labels = data.images.to(device), data.labels.to(device)
        self._test = data.test_images[share].to(device), data.test_labels[share]

    def take(self, epoch: int, turn: int) -> tuple[Tensor, Tensor]:
        """Return uint8 images and labels of a part."""
        if epoch != self._epoch:
            order, _ = epoch_order(self._seed, epoch, len(self._images))
            self._order, self._epoch = order.to(self._images.device), epoch
        chosen = self._order[self._turns[turn]]
        return self._images.index_select(0, chosen), self._labels.index_select(0, chosen)

    def test(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 test images, and labels on the CPU, up to so many at a time."""
        images, labels = self._test
        yield from zip(images.split(size), labels.split(size), strict=True)


def _refuse_streamed_changes(change: Augmentation) -> None:
    for name in ("scale", "auto_augment", "interpolation"):
        if (value := getattr(change, name)) != getattr(Augmentation, name):
            got = f"augmentation.{name} is {value!r} for images that are held in memory"
            raise KeyFiltersError(f"{got}; set data.stream=true, or leave it out")


def crop_and_flip(images: Tensor, corner: Tensor, mirror: Tensor, border: int) -> Tensor:
    """Surround images with black and cut each anew at its corner, mirrored or not.

    Args:
        images: ``(n, c, h, w)``.
        corner: ``(2, n)``, row and column of the upper left pixel, from 0 to 2 · border.
        mirror: ``(n,)`` booleans.
        border: pixels on each side.

    >>> images = torch.arange(4).reshape(1, 1, 2, 2)
    >>> crop_and_flip(images, torch.tensor([[1], [1]]), torch.tensor([True]), 1)
    tensor([[[[1, 0],
              [3, 2]]]])
    """
    count, channels, height, width = images.shape
    wide = functional.pad(images, (border,) * 4) if border else images
    rows = torch.arange(height, device=images.device) + corner[0, :, None]
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + corner[1, :, None]
    index = rows[:, :, None] * wide.shape[3] + columns[:, None, :]
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    return wide.flatten(2).gather(2, index).view(count, channels, height, width)

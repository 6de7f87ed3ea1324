"""The batches of one process, cut by index from images that lie on the device.

Everything random here is a function of the recipe's seed and the number of the step, and shared
out after it was drawn for the whole batch: an interruption, or another number of processes, leaves
the order of the images and their crops as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from keyfilters.errors import KeyFiltersError
from keyfilters.training.datasets import Data
from keyfilters.training.recipe import Recipe

__all__ = ["Batches", "crop_and_flip"]


class Batches:
    """Training batches by step and part, and test batches, of one of several processes.

    Args:
        recipe: says how large batches are and what is done to images.
        data: the images.
        device: where they go, all at once, as uint8.
        process: number of this process.
        processes: how many there are.

    Raises:
        KeyFiltersError: a batch that is larger than the data, cannot be shared out evenly, or is
            odd where images are mixed in pairs.
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
        self._images, self._labels = data.images.to(device), data.labels.to(device)
        share = slice(
            len(data.test_images) * process // processes,
            len(data.test_images) * (process + 1) // processes,
        )
        self._test = data.test_images[share].to(device), data.test_labels[share]
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
        if epoch != self._epoch:
            self._draw(epoch)
        own = self._first + part
        start = place * self._recipe.batch.size + own * self.part_size
        rows = slice(start, start + self.part_size)
        chosen = self._order[rows]
        x, y = self._images.index_select(0, chosen), self._labels.index_select(0, chosen)
        if self._recipe.augmentation.crop or self._recipe.augmentation.flip:
            border = self._recipe.augmentation.crop
            x = crop_and_flip(x, self._corner[:, rows], self._mirror[rows], border)
        x = self._normal(x)
        words = np.random.SeedSequence((self._recipe.seed, step, own)).generate_state(2)
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
        images, labels = self._test
        for x, y in zip(images.split(self.part_size), labels.split(self.part_size), strict=True):
            yield self._normal(x), y

    def _draw(self, epoch: int) -> None:
        """Draw order, corners and mirrors of all images of an epoch."""
        words = np.random.SeedSequence((self._recipe.seed, epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(words[0]))
        count, border = len(self._images), self._recipe.augmentation.crop
        order = torch.randperm(count, generator=generator)
        corner = torch.randint(0, 2 * border + 1, (2, count), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        if not self._recipe.augmentation.flip:
            mirror[:] = False
        self._order, self._corner, self._mirror = (
            x.to(self._device) for x in (order, corner, mirror)
        )
        self._epoch = epoch

    def _normal(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self._recipe.channels_last else torch.contiguous_format
        x = images.to(torch.float32, memory_format=layout)
        return x.sub_(self._shift).mul_(self._scale)


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

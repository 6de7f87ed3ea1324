"""The batches of one process: accelerate's loader for training, a share of the others to measure.

Accelerate's loader is resumed by `Accelerator.load_state`. It leaves two things undone: with
several processes the data set is not told the epoch, and with workers the order of the first epoch
is read before its seedable sampler is in place; so both are done here.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from keyfilters.errors import KeyFiltersError, UnreadableError, needing
from keyfilters.training.data import Data
from keyfilters.training.processes import order_seed
from keyfilters.training.recipe import Recipe

__all__ = ["Batches", "share_of"]


def share_of(recipe: Recipe, images: int, processes: int) -> int:
    """Return the images of a part of a step in one process; refuse a batch that does not fit."""
    size, parts = recipe.batch.size, recipe.batch.accumulation
    if size > images:
        got = f"batch.size is {size}, more than the {images} training images"
        raise KeyFiltersError(f"{got}; set a smaller batch.size")
    if size % (parts * processes):
        got = f"batch.size {size} for {processes} processes of {parts} parts each"
        raise KeyFiltersError(f"{got}; a multiple of {parts * processes} is expected")
    share = size // (parts * processes)
    if share % 2 and (recipe.augmentation.mixup or recipe.augmentation.cutmix):
        got = f"parts of {share} images cannot be mixed in pairs"
        raise KeyFiltersError(f"{got}; set an even batch.size")
    return share


class Batches:
    """Batches to train with and to measure on, normalised, on the device.

    Attributes:
        per_epoch: number of steps of an epoch.
        skipped: name → reason of the streamed images that could not be read so far.
    """

    def __init__(self, recipe: Recipe, data: Data, accelerator: Any) -> None:
        from accelerate.data_loader import SeedableRandomSampler
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        self._recipe, self._data, self._accelerator = recipe, data, accelerator
        self._device, change = accelerator.device, recipe.augmentation
        self._share = share_of(recipe, len(data.images), accelerator.num_processes)
        self.per_epoch = len(data.images) // recipe.batch.size
        self.skipped: dict[str, str] = {}
        self._sets = {part: data.dataset(part, recipe, self._device) for part in data.parts()}
        images = self._sets["training"]
        count = self.per_epoch * recipe.batch.size
        sampler = SeedableRandomSampler(images, num_samples=count, data_seed=order_seed(recipe))
        size = recipe.batch.size // recipe.batch.accumulation  # accelerate splits it
        plain = self._loader(images, size, sampler=sampler)
        with warnings.catch_warnings(), needing("train", "training"):
            # torchdata calls what torch deprecates.
            warnings.filterwarnings("ignore", ".*set_vital")
            self._training = accelerator.prepare_data_loader(plain)
        mean, std = (torch.tensor(x).view(-1, 1, 1).to(self._device) for x in (data.mean, data.std))
        self._shift, self._scale = 255 * mean, 1 / (255 * std)
        self._erase, self._mix = None, None
        if change.erasing:
            self._erase = RandomErasing(change.erasing, mode="pixel", device=self._device)
        if change.mixup or change.cutmix:
            self._mix = Mixup(
                mixup_alpha=change.mixup,
                cutmix_alpha=change.cutmix,
                label_smoothing=change.label_smoothing,
                num_classes=len(data.classes),
            )

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is left of an epoch: images ``(b, c, h, w)`` float32, and labels.

        These are integers ``(b,)``, or where images are mixed, shares ``(b, classes)``.

        Raises:
            UnreadableError: a streamed image cannot be read and the data say stop, or many cannot.
        """
        self._training.set_epoch(number)
        self._sets["training"].set_epoch(number)
        for images, labels in self._read(self._training, complete=True):
            x = images if self._erase is None else self._erase(images)
            yield (x, labels) if self._mix is None else self._mix(x, labels)

    def of(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the validation or test images; raises as `epoch`."""
        images, rank = self._sets[part], self._accelerator.process_index
        bounds = [len(images) * x // self._accelerator.num_processes for x in (rank, rank + 1)]
        yield from self._read(self._loader(Subset(images, range(*bounds)), self._share))

    def _loader(self, images: Any, size: int, **options: Any) -> Any:
        return DataLoader(
            images,
            size,
            num_workers=self._data.workers if self._data.items else 0,
            collate_fn=_as_it_is,
            pin_memory=bool(self._data.items) and self._device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # else it draws from the global one
            **options,
        )

    def _read(self, loader: Any, complete: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        layout = torch.channels_last if self._recipe.channels_last else torch.contiguous_format
        try:
            for images, labels, failed in loader:
                self.skipped.update(failed)
                few = "; ".join(": ".join(one) for one in failed[-3:])
                if failed and self._data.unreadable == "stop":
                    raise UnreadableError(
                        f"{failed[0][0]} cannot be read ({failed[0][1]}); data.unreadable is stop"
                    )
                if len(images) < (self._share if complete else 1):
                    raise UnreadableError(
                        f"too many images of {self._data.name} cannot be read ({few})"
                    )
                x = images.to(self._device).to(torch.float32, memory_format=layout)
                yield x.sub_(self._shift).mul_(self._scale), labels.to(self._device)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            mend = (
                "its memory or /dev/shm may be full: set fewer data.workers or a smaller batch.size"
            )
            raise KeyFiltersError(f"a process that decodes images ended; {mend}") from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignore a typed Ctrl-C, which reaches all processes: the one that trains ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

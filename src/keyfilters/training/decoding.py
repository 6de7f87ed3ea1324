"""Decoding and changing the images of a part of a batch, in whichever process it happens.

What is random about an image is a function of the seed, the epoch and the number of the image: not
of the process that decodes it, nor of what was decoded before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from keyfilters.errors import KeyFiltersError
from keyfilters.training.data import open_image
from keyfilters.training.devices import own_randomness
from keyfilters.training.labelled import StreamedData
from keyfilters.training.order import epoch_order
from keyfilters.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Decoded", "Decoder", "Request"]

CROP_SHARE = 0.875  # of the short side that is left of a test image, timm's usual crop_pct
TRIES = 50  # images in a row; if none of them can be read, the folder cannot

Request: TypeAlias = tuple[int, int, int]  # epoch (below 0: test images), start, stop
Decoded: TypeAlias = tuple[Request, Tensor, Tensor, list[tuple[str, str]]]
Change: TypeAlias = "Callable[[Image], Image]"

CPU = torch.device("cpu")


class Decoder(Dataset[Decoded]):
    """Parts of batches by request.

    ``decoder[epoch, start, stop]`` decodes the images at these places of the order of an epoch; at
    an epoch below 0 the test images of these numbers. It returns the request, uint8 images
    ``(n, 3, side, side)``, their numbers ``(n,)`` and (name, reason) of the files that could not be
    read. For such a file in training comes the image half an epoch further on, or the next one
    after that which can be read; a test image is left out.

    Args:
        recipe: its seed and augmentation.
        data: the files.

    Raises:
        KeyFiltersError: timm does not know the policy `auto_augment`.
    """

    def __init__(self, recipe: Recipe, data: StreamedData) -> None:
        self._data, self._seed = data, recipe.seed
        self._side = int(data.images.shape[2])
        self._changes = _changes(recipe.augmentation, data, self._side)
        self._random = bool(recipe.augmentation.scale or recipe.augmentation.auto_augment)
        self._epoch, self._order = -1, np.array([], dtype=np.int64)

    def __getitem__(self, request: Request) -> Decoded:
        epoch, start, stop = request
        images = np.empty((stop - start, 3, self._side, self._side), dtype=np.uint8)
        numbers: list[int] = []
        failed: list[tuple[str, str]] = []
        with own_randomness(CPU):  # where no other process decodes, it is the caller's
            for place in range(start, stop):
                for number in [place] if epoch < 0 else self._candidates(epoch, place):
                    if self._decode(epoch, number, images[len(numbers)], failed):
                        numbers.append(number)
                        break
                    if self._data.unreadable == "stop":
                        return request, torch.from_numpy(images[:0]), torch.tensor([]), failed
        read = torch.from_numpy(images[: len(numbers)])
        return request, read, torch.tensor(numbers, dtype=torch.int64), failed

    def _candidates(self, epoch: int, place: int) -> list[int]:
        """Return the image at a place of the order, and those that may stand in for it.

        They come half an epoch later, so that hardly a batch shows an image twice.
        """
        if epoch != self._epoch:
            order, _ = epoch_order(self._seed, epoch, len(self._data.files))
            self._epoch, self._order = epoch, order.numpy()
        far = place + len(self._order) // 2
        places = np.array([place, *range(far, far + min(TRIES, len(self._order)))])
        return list(self._order[places % len(self._order)].tolist())

    def _decode(
        self, epoch: int, number: int, into: NDArray[np.uint8], failed: list[tuple[str, str]]
    ) -> bool:
        """Write an image where it belongs, or why there is none."""
        train = epoch >= 0
        file = (self._data.files if train else self._data.test_files)[number]
        path = Path(self._data.folder, os.fsdecode(file))
        if train and self._random:  # the 1 keeps it apart from what is drawn for a whole part
            words = np.random.SeedSequence((self._seed, epoch, number, 1)).generate_state(2)
            random.seed(int(words[0]))
            np.random.seed(int(words[1]))  # noqa: NPY002
            torch.default_generator.manual_seed(int(words[0]))
        try:
            image = open_image(path)
        except Exception as error:  # damaged files make decoders raise nearly anything
            named = "" if isinstance(error, KeyFiltersError) else f"{type(error).__name__}: "
            failed.append((str(path), f"{named}{error}"))
            return False
        changed = np.array(self._changes[0 if train else 1](image))
        into[:] = changed.transpose(2, 0, 1)  # of bytes, ten times as quick as torch
        return True


class _Square:
    """The largest square from the middle of an image, resized as by `data.centre_crop`."""

    def __init__(self, side: int, resample: int) -> None:
        self.side, self.resample = side, resample

    def __call__(self, image: Image) -> Image:
        from PIL.Image import Resampling

        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.side, self.side), Resampling(self.resample))


def _changes(change: Augmentation, data: StreamedData, side: int) -> tuple[Change, Change]:
    """Return what is done to training images and to test images."""
    from PIL.Image import Resampling
    from timm.data import create_transform
    from torchvision.transforms import Compose

    still = "bicubic" if change.interpolation == "random" else change.interpolation
    try:
        cut, policy, _ = create_transform(
            side,
            is_training=True,
            scale=(change.scale or 1.0, 1.0),
            hflip=0.0,  # images are mirrored all together, whether they were streamed or not
            color_jitter=None,
            auto_augment=change.auto_augment or None,
            interpolation=change.interpolation,
            mean=data.mean,
            separate=True,
        )
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        got = f"augmentation.auto_augment is {change.auto_augment!r}"
        expected = "one of timm's policies is expected, such as rand-m9-mstd0.5-inc1"
        raise KeyFiltersError(f"{got}; {expected}") from error
    _keep_one_bit(policy)
    if not change.scale:
        cut = _Square(side, Resampling[still.upper()].value)
    resize, crop, *_ = create_transform(side, crop_pct=CROP_SHARE, interpolation=still).transforms
    return Compose([cut, policy]), Compose([resize, crop])


def _keep_one_bit(policy: Any) -> None:
    """Let policies posterise to black where they ask for 0 bits, which Pillow 13 refuses."""
    from timm.data.auto_augment import AugmentOp, posterize

    for change in getattr(policy, "transforms", ()):
        alone = getattr(change, "ops", ())  # of RandAugment and AugMix, and then of AutoAugment
        grouped = [op for group in getattr(change, "policy", ()) for op in group]
        for op in (*alone, *grouped):
            if isinstance(op, AugmentOp) and op.aug_fn is posterize:
                op.aug_fn = _posterize


def _posterize(image: Image, bits_to_keep: int, **_: Any) -> Image:
    from PIL import ImageOps

    if bits_to_keep < 1:
        return image.point(lambda _: 0)
    return image if bits_to_keep >= 8 else ImageOps.posterize(image, bits_to_keep)

"""The sources of labelled images: what each needs in order to give a training and a test half.

A reader returns all labels at once and reads images only when asked for them, so that a few
classes of a large folder cost no more than they hold.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.training.data import photographs, random_crops, read_image
from keyfilters.training.libraries import hugging_face, torchvision
from keyfilters.training.splits import Halves, Request, held_out, in_memory, one_by_one

__all__ = ["READERS"]

DEBIAN = "/usr/share/datasets/fashion-mnist"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
TESTS = ("val", "valid", "validation", "test")  # what a folder of test images is called


def _digits(request: Request) -> Halves:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = found.target.astype(np.int64)
    return *held_out(in_memory(images, labels)), [str(i) for i in range(10)]


def _fashion_mnist(request: Request) -> Halves:
    folder = Path(request.argument or DEBIAN)
    places = [folder, folder / "raw", folder / "FashionMNIST" / "raw"]
    halves = []
    for half in ("train", "t10k"):
        images, labels = (
            _idx(places, f"{half}-{part}") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        halves.append(in_memory(images[:, None], labels.numpy().astype(np.int64)))
    return halves[0], halves[1], FASHION


def _idx(places: Sequence[Path], name: str) -> Tensor:
    """Read an IDX file of bytes: two zeros, type 8, dimensions, their big-endian sizes, data."""
    candidates = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
    path = next((x for x in candidates if x.is_file()), None)
    if path is None:
        what = "apt-get install dataset-fashion-mnist, or name its folder: fashion-mnist:FOLDER"
        raise KeyFiltersError(f"{places[0]} has no file {name}.gz; type: {what}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        sizes = np.frombuffer(raw, ">i4", raw[3], 4).tolist()
        data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
        return torch.from_numpy(data.reshape(sizes).copy())
    except (OSError, EOFError, ValueError) as error:
        raise KeyFiltersError(f"{path} cannot be read ({error}); fetch it again") from error


def _photos(request: Request) -> Halves:
    known = photographs()
    crops_for_all = ceil(request.samples / (request.classes or len(known))) * len(known)
    halves = []
    for region, count in (("left", crops_for_all or 1400), ("right", 50 * len(known))):
        crops = random_crops(
            known, count, request.resolution or 64, region=region, seed=request.seed
        )
        halves.append(in_memory(crops, np.arange(count, dtype=np.int64) % len(known)))
    return halves[0], halves[1], list(known)


def _image_folder(request: Request) -> Halves:
    folder = Path(request.argument)
    if not request.argument or not folder.is_dir():
        raise KeyFiltersError(f"{request.argument!r} is no folder; type imagefolder:FOLDER")
    parts = [folder]
    if any(x.is_dir() for x in folder.glob("train/*")):  # else a class of that name
        tests = [folder / x for x in TESTS if (folder / x).is_dir()]
        parts = [folder / "train", *tests[:1]]
    names = sorted({x.name for part in parts for x in part.iterdir() if x.is_dir()})
    if not names:
        raise KeyFiltersError(f"{folder} has no folders; one for each class is expected in it")
    splits, start = [], len(str(folder / "x")) - 1
    for part in parts:
        places = [str(part / name) for name in names]  # a Path a file would cost seconds a million
        listed = [sorted(_files(place), key=lambda x: x.replace(os.sep, "\0")) for place in places]
        files = [file for own in listed for file in own]
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(own) for own in listed])
        split = one_by_one(files, labels, lambda file: read_image(Path(file)), request)
        below = np.array([os.fsencode(file[start:]) for file in files], dtype="S")
        splits.append(replace(split, files=below))
    return *(splits if len(splits) == 2 else held_out(splits[0])), names


def _files(folder: str) -> Iterator[str]:
    """Yield all files below a folder without opening one; a missing folder has none."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                elif entry.is_file():
                    yield entry.path
    except FileNotFoundError:
        return
    except OSError as error:
        raise KeyFiltersError(f"cannot list {folder}: {error.strerror or error}") from error


READERS: dict[str, Callable[[Request], Halves]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "photos": _photos,
    "imagefolder": _image_folder,
    "torchvision": torchvision,
    "hf": hugging_face,
}

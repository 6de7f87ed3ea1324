"""The sources of labelled images: each returns all labels, and images that are decoded later."""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, MissingExtraError, nearest
from keyfilters.training.dataset import Items
from keyfilters.training.images import photographs, random_crops
from keyfilters.training.recipe import DataSource

__all__ = ["READERS", "Part"]

DEBIAN = "/usr/share/datasets/fashion-mnist"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FOLDERS = {"test": ("test",), "validation": ("val", "valid", "validation")}


@dataclass(frozen=True, eq=False)
class Part:
    """Labels ``(n,)``, below 0 where there is none, and images: a tensor, or items to decode."""

    labels: NDArray[np.int64]
    images: Tensor | Items

    def take(self, rows: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> Part:
        """Return some of the images, perhaps with other labels."""
        own = self.labels[rows] if labels is None else labels
        if isinstance(self.images, Tensor):
            return Part(own, self.images[torch.from_numpy(rows)])
        return Part(own, replace(self.images, rows=self.images.rows[rows]))


Found: TypeAlias = tuple[dict[str, Part], Sequence[str]]  # by part; names of the classes


def _digits(argument: str, asked: DataSource) -> Found:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None]
    part = Part(found.target.astype(np.int64), images)
    return {"training": part}, [str(i) for i in range(10)]


def _fashion_mnist(argument: str, asked: DataSource) -> Found:
    folder = Path(argument or DEBIAN)
    places = [folder, folder / "raw", folder / "FashionMNIST" / "raw"]
    parts = {}
    for part, half in (("training", "train"), ("test", "t10k")):
        images = _idx(places, f"{half}-images-idx3-ubyte")[:, None]
        labels = _idx(places, f"{half}-labels-idx1-ubyte").numpy().astype(np.int64)
        parts[part] = Part(labels, images)
    return parts, FASHION


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


def _photos(argument: str, asked: DataSource) -> Found:
    known = photographs()
    wanted = asked.samples / (1 - asked.validation) / (len(asked.classes) or len(known))
    count = (ceil(wanted) + (asked.validation > 0)) * len(known) if asked.samples else 1400
    parts = {}
    for part, region, n in (("training", "left", count), ("test", "right", 50 * len(known))):
        crops = random_crops(known, n, asked.resolution or 64, region=region, seed=asked.seed)
        parts[part] = Part(np.arange(n, dtype=np.int64) % len(known), crops)
    return parts, list(known)


def _image_folder(argument: str, asked: DataSource) -> Found:
    folder = Path(argument)
    if not argument or not folder.is_dir():
        raise KeyFiltersError(f"{argument!r} is no folder; type imagefolder:FOLDER")
    places = {"training": folder}
    if any(x.is_dir() for x in folder.glob("train/*")):  # else a class of that name
        places["training"] = folder / "train"
        for part, known in FOLDERS.items():
            for name in reversed([x for x in known if (folder / x).is_dir()]):
                places[part] = folder / name
    names = sorted({x.name for place in places.values() for x in place.iterdir() if x.is_dir()})
    if not names:
        raise KeyFiltersError(f"{folder} has no folders; one for each class is expected in it")
    parts, start = {}, len(str(folder / "x")) - 1
    for part, place in places.items():
        listed = [
            sorted(_files(str(place / x)), key=lambda x: x.replace(os.sep, "\0")) for x in names
        ]
        files = np.array([os.fsencode(file[start:]) for own in listed for file in own], dtype="S")
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(own) for own in listed])
        parts[part] = Part(labels, Items(files, np.arange(len(files)), folder=str(folder)))
    return parts, names


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


def _torchvision(argument: str, asked: DataSource) -> Found:
    """Take a class of torchvision.datasets by its two halves, or part the whole."""
    from torchvision import datasets

    kind = getattr(datasets, argument, None)
    if kind is None:
        known = f"torchvision has no data set {argument!r}"
        raise KeyFiltersError(known + nearest(argument, datasets.__all__))
    accepted = inspect.signature(kind).parameters
    given: dict[str, Any] = {"root": asked.root or ".", "download": False}
    given = {name: value for name, value in given.items() if name in accepted}
    halves: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        halves = [{"train": True}, {"train": False}]
    elif "split" in accepted:
        halves = [{"split": "train"}, {"split": "test"}]
    try:
        found = [kind(**given, **half) for half in halves]
    except (ValueError, RuntimeError, FileNotFoundError, TypeError) as error:
        mend = (
            f"fetch it with torchvision.datasets.{argument}({given.get('root')!r}, download=True)"
        )
        if isinstance(error, ValueError):  # its halves have other names
            mend = "save its images as FOLDER/train/CLASS and type imagefolder:FOLDER"
        message = f"torchvision:{argument} below root {given.get('root')!r}: {error}"
        raise KeyFiltersError(f"{message}; {mend}") from error
    parts = {}
    for part, one in zip(("training", "test"), found, strict=False):
        labels = next((getattr(one, x) for x in ("targets", "labels") if hasattr(one, x)), None)
        if labels is None:
            labels = [one[i][1] for i in range(len(one))]
        try:
            numbers = np.array([int(x) for x in labels], dtype=np.int64)
        except (TypeError, ValueError) as error:
            message = f"torchvision:{argument} has no whole numbers as labels ({error})"
            raise KeyFiltersError(f"{message}; choose a set for classification") from error
        parts[part] = Part(numbers, Items(one, np.arange(len(numbers)), itemgetter(0)))
    count = max(int(part.labels.max()) for part in parts.values()) + 1
    return parts, [str(x) for x in getattr(found[0], "classes", range(count))]


def _hugging_face(argument: str, asked: DataSource) -> Found:
    """Take train, and test and validation where they have labels."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading data sets of the Hugging Face hub", "hf") from error
    name, *columns = argument.split("#")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub, the network and file formats raise nearly anything
        message = f"hf:{name} cannot be loaded ({type(error).__name__}: {error})"
        raise KeyFiltersError(message) from error
    if "train" not in found:
        raise KeyFiltersError(f"hf:{name} has {', '.join(found)}; train is expected")
    kinds = {column: type(kind).__name__ for column, kind in found["train"].features.items()}
    image, label = (_column(name, kinds, kind, columns) for kind in ("Image", "ClassLabel"))
    parts = {}
    for part, split in (("training", "train"), ("test", "test"), ("validation", "validation")):
        if split in found:
            own = [-1 if x is None else x for x in found[split][label]]
            labels = np.array(own, dtype=np.int64)
            if part == "training" or (labels >= 0).any():
                items = Items(found[split], np.arange(len(labels)), itemgetter(image))
                parts[part] = Part(labels, items)
    return parts, found["train"].features[label].names


def _column(name: str, kinds: Mapping[str, str], kind: str, asked: Sequence[str]) -> str:
    """Return the one column of a kind, or of several the one that was asked for."""
    for column in asked:
        if kinds.get(column) not in ("Image", "ClassLabel"):
            known = f"hf:{name} has no column {column!r} of images or labels"
            raise KeyFiltersError(f"{known}; it has {', '.join(kinds)}{nearest(column, kinds)}")
    own = [column for column in kinds if kinds[column] == kind]
    fitting = [column for column in own if column in asked] or own
    if len(fitting) == 1:
        return fitting[0]
    if own:
        choose = f"choose one with hf:{name}#{own[0]}"
        raise KeyFiltersError(f"hf:{name} has the {kind} columns {', '.join(own)}; {choose}")
    columns = ", ".join(f"{column}: {found}" for column, found in kinds.items())
    raise KeyFiltersError(f"hf:{name} has {columns}; an Image and a ClassLabel are expected")


READERS: dict[str, Callable[[str, DataSource], Found]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "photos": _photos,
    "imagefolder": _image_folder,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}

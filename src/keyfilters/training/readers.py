"""The sources of labelled images: each returns all labels, and images that are decoded later."""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, nearest, needing
from keyfilters.files import typed_path
from keyfilters.network import hub_answers, hub_offline
from keyfilters.threads import by_threads, parts_of
from keyfilters.training.images import in_rgb, open_image, photographs, random_crops
from keyfilters.training.parquet import parquet_splits
from keyfilters.training.recipe import DataSource

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["READERS", "Items", "Part"]

DEBIAN = "/usr/share/datasets/fashion-mnist"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
READ_AT_ONCE = 256  # images whose content is read by one task
FOLDERS = {"test": ("test",), "validation": ("val", "valid", "validation")}


@dataclass(frozen=True, eq=False)
class Items:
    """Images of a source, decoded one by one.

    Attributes:
        source: what `rows` index: a data set, or names of files below `folder` in bytes, since a
            million strings would be copied into every worker.
        rows: ``(n,)`` positions in `source`.
        decode: takes the image out of an entry that is no file.
        folder: of the files.
    """

    source: Any
    rows: NDArray[np.int64]
    decode: Callable[[Any], Image] | None = None
    folder: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> Path:
        """Return the file of an image, or its number in the source."""
        row = int(self.rows[i])
        return Path(f"image {row}" if self.decode else os.fsdecode(self.source[row]))

    def image(self, i: int) -> Image:
        """Decode an image, grey or RGB; raises nearly anything where it is damaged."""
        if self.decode:
            found = self.decode(self.source[int(self.rows[i])])
            return found if found.mode == "L" else in_rgb(found)
        return open_image(self.folder / self.path(i))

    def checksum(self) -> int:
        """Return the CRC-32 of the content of all images; every one of them is read."""

        def one(i: int) -> int:
            try:
                if self.decode:
                    return crc32(self.image(i).tobytes())
                return crc32((self.folder / self.path(i)).read_bytes())
            except Exception:  # an image that cannot be read has no content
                return 0

        def several(part: slice) -> bytes:
            return np.array([one(i) for i in range(part.start, part.stop)], np.uint32).tobytes()

        found = 0
        for part in by_threads(several, parts_of(len(self), READ_AT_ONCE)):
            found = crc32(part, found)
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """Labels ``(n,)``, below 0 where there is none, and images: a tensor, or items to decode."""

    labels: NDArray[np.int64]
    images: Tensor | Items

    def take(self, rows: NDArray[np.int64]) -> Part:
        """Return some of the images."""
        if isinstance(self.images, Tensor):
            return Part(self.labels[rows], self.images[torch.from_numpy(rows)])
        return Part(self.labels[rows], replace(self.images, rows=self.images.rows[rows]))


Found: TypeAlias = tuple[dict[str, Part], Sequence[str]]  # by part; names of the classes


def _digits(argument: str, asked: DataSource) -> Found:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None]
    return {"training": Part(found.target.astype(np.int64), images)}, list("0123456789")


def _fashion_mnist(argument: str, asked: DataSource) -> Found:
    parts = {}
    for part, half in (("training", "train"), ("test", "t10k")):
        folder = typed_path(argument or DEBIAN)
        images, labels = (
            _idx(folder, f"{half}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        )
        whole = images.ndim == 3 and images.size and images.shape[:1] == labels.shape
        if not whole or labels.max() >= len(FASHION):
            got = f"{half} has images {images.shape} and labels {labels.shape}"
            raise KeyFiltersError(
                f"{folder}: {got}; (n, height, width) and n labels below {len(FASHION)} are "
                "expected; fetch them again"
            )
        parts[part] = Part(labels.astype(np.int64), torch.from_numpy(images)[:, None])
    return parts, FASHION


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, type 8, dimensions, their big-endian sizes, data."""
    places = (folder, folder / "raw", folder / "FashionMNIST" / "raw")
    candidates = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
    path = next((x for x in candidates if x.is_file()), None)
    if path is None:
        what = "apt-get install dataset-fashion-mnist, or name its folder: fashion-mnist:FOLDER"
        raise KeyFiltersError(f"{folder} has no file {name}.gz; type: {what}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08" or len(raw) < 8:
            raise ValueError("it does not begin as an IDX file of bytes")
        sizes = np.frombuffer(raw, ">i4", raw[3], 4).tolist()
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy()
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
    folder = typed_path(argument)
    if not argument or not folder.is_dir():
        raise KeyFiltersError(f"{argument!r} is no folder; type imagefolder:FOLDER")
    places = {"training": folder}
    if any(x.is_dir() for x in folder.glob("train/*")):  # else a class of that name
        there = {
            part: [folder / name for name in known if (folder / name).is_dir()]
            for part, known in {"training": ("train",), **FOLDERS}.items()
        }
        places = {part: found[0] for part, found in there.items() if found}
    names = sorted({x.name for place in places.values() for x in place.iterdir() if x.is_dir()})
    if not names:
        raise KeyFiltersError(f"{folder} has no folders; one for each class is expected in it")
    parts = {}
    for part, place in places.items():
        listed = [_files(place / name, folder) for name in names]
        files = np.array([file for own in listed for file in own], dtype="S")
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(own) for own in listed])
        parts[part] = Part(labels, Items(files, np.arange(len(files)), folder=str(folder)))
    return parts, names


def _files(folder: Path, root: Path) -> list[bytes]:
    """Return all files of a folder by their names below a root; a missing folder has none."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise KeyFiltersError(f"cannot list {folder}: {error.strerror or error}") from error

    start = len(str(root / "x")) - 1
    found = [os.path.join(at, x) for at, _, own in os.walk(folder, onerror=fail) for x in own]  # noqa: PTH118
    found = [x for x in found if os.path.isfile(x)]  # noqa: PTH113  # a pipe would wait for ever
    return [os.fsencode(x[start:]) for x in sorted(found, key=lambda x: x.replace(os.sep, "\0"))]


def _torchvision(argument: str, asked: DataSource) -> Found:
    """Take a class of torchvision.datasets by its two halves, or part the whole."""
    from torchvision import datasets

    kind = getattr(datasets, argument, None)
    if kind is None:
        known = f"torchvision has no data set {argument!r}"
        raise KeyFiltersError(known + nearest(argument, datasets.__all__))
    accepted = inspect.signature(kind).parameters
    root = asked.root or "."
    given = {"root": root} if "root" in accepted else {}
    halves: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        halves = [{"train": True}, {"train": False}]
    elif "split" in accepted:
        halves = [{"split": "train"}, {"split": "test"}]
    try:
        found = [kind(**given, **half) for half in halves]
    except (ValueError, RuntimeError, FileNotFoundError, TypeError) as error:
        mend = f"fetch it with torchvision.datasets.{argument}({root!r}, download=True)"
        if isinstance(error, ValueError):  # its halves have other names
            mend = "save its images as FOLDER/train/CLASS and type imagefolder:FOLDER"
        raise KeyFiltersError(f"torchvision:{argument} below {root!r}: {error}; {mend}") from error
    parts = {}
    for part, one in zip(("training", "test"), found, strict=False):
        labels = getattr(one, "targets", getattr(one, "labels", None))
        try:
            labels = [one[i][1] for i in range(len(one))] if labels is None else labels
            numbers = np.array([int(x) for x in labels], dtype=np.int64)
        except (TypeError, ValueError) as error:
            message = f"torchvision:{argument} has no whole numbers as labels ({error})"
            raise KeyFiltersError(f"{message}; choose a set for classification") from error
        parts[part] = Part(numbers, Items(one, np.arange(len(numbers)), itemgetter(0)))
    count = max(int(part.labels.max()) for part in parts.values()) + 1
    return parts, [str(x) for x in getattr(found[0], "classes", range(count))]


def _hugging_face(argument: str, asked: DataSource) -> Found:
    """Take train, and test and validation where they have labels."""
    name, *columns = argument.split("#")
    found: Any = parquet_splits(typed_path(name)) or _loaded(name)
    if "train" not in found:
        raise KeyFiltersError(f"hf:{name} has {', '.join(found)}; train is expected")
    kinds = {key: type(kind).__name__ for key, kind in found["train"].features.items()}
    for column in columns:
        if kinds.get(column) not in ("Image", "ClassLabel"):
            known = f"hf:{name} has no column {column!r} of images or labels"
            raise KeyFiltersError(f"{known}; it has {', '.join(kinds)}{nearest(column, kinds)}")
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


def _loaded(name: str) -> Any:
    """Load a data set with the package of the hub."""
    with needing("hf", "reading data sets of the Hugging Face hub"):
        import datasets
    silent = ""
    try:
        hub_answers()
    except ConnectionError as error:
        silent = str(error)
    try:
        # Where the hub is silent, its cache may hold the set.
        with hub_offline(datasets.config) if silent else nullcontext():
            return datasets.load_dataset(name)
    except Exception as error:  # the hub, the network and file formats raise nearly anything
        reason = silent or f"{type(error).__name__}: {error}"
        mend = "; connect this machine, or give a folder of its parquet files: hf:FOLDER"
        raise KeyFiltersError(
            f"hf:{name} cannot be loaded ({reason}){mend if silent else ''}"
        ) from error


def _column(name: str, kinds: Mapping[str, str], kind: str, asked: Sequence[str]) -> str:
    """Return the one column of a kind, or of several the one that was asked for."""
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

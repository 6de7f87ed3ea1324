"""The sources of labelled images: what each needs in order to give a training and a test half.

A reader returns all labels at once and reads images only when asked for them, so that a few
classes of a large folder cost no more than they hold.
"""

from __future__ import annotations

import gzip
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, MissingExtraError, nearest
from keyfilters.training.data import centre_crop, photographs, random_crops, read_image

__all__ = ["READERS", "Request", "Split", "stratified"]

DEBIAN = "/usr/share/datasets/fashion-mnist"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HELD = 0.2  # share of each class kept for testing where a source has no test images

Skipped: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What was asked for, as far as a reader needs it; see `load_data`."""

    argument: str = ""
    samples: int = 0
    classes: int = 0
    resolution: int = 0
    root: str = ""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Split:
    """The labels of all images of one half, and the way to read some of them.

    Attributes:
        labels: ``(n,)`` integers.
        read: maps positions ``(m,)`` to uint8 images ``(k, c, h, w)`` and to those of the m that
            could be read ``(k,)``; the others are appended to its second argument.
    """

    labels: NDArray[np.int64]
    read: Callable[[NDArray[np.int64], Skipped], tuple[Tensor, NDArray[np.int64]]]


Halves: TypeAlias = tuple[Split, Split, Sequence[str]]


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` positions in the proportions of the classes; ascending.

    >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    >>> labels[stratified(labels, 6, seed=0)].tolist()
    [0, 0, 0, 0, 1, 1]
    """
    values, sizes = np.unique(labels, return_counts=True)
    share = count * sizes / sizes.sum()
    take = share.astype(int)
    rest = np.argsort(take - share, kind="stable")  # largest remainder first
    take[rest[: count - take.sum()]] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == value))[:n]
        for value, n in zip(values, take, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _digits(request: Request) -> Halves:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = found.target.astype(np.int64)
    # One split for ever: results on digits are compared, whatever the seed.
    return *_held_out(_array(images, labels), seed=0), [str(i) for i in range(10)]


def _fashion_mnist(request: Request) -> Halves:
    folder = Path(request.argument or DEBIAN)
    places = [folder, folder / "raw", folder / "FashionMNIST" / "raw"]
    halves = []
    for half in ("train", "t10k"):
        images, labels = (
            _idx(places, f"{half}-{part}") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        halves.append(_array(images[:, None], labels.numpy().astype(np.int64)))
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
    crops_for_all = ceil(request.samples * len(known) / (request.classes or len(known)))
    halves = []
    for region, count in (("left", crops_for_all or 1400), ("right", 50 * len(known))):
        crops = random_crops(
            known, count, request.resolution or 64, region=region, seed=request.seed
        )
        halves.append(_array(crops, np.arange(count, dtype=np.int64) % len(known)))
    return halves[0], halves[1], list(known)


def _image_folder(request: Request) -> Halves:
    folder = Path(request.argument)
    if not request.argument or not folder.is_dir():
        raise KeyFiltersError(f"{request.argument!r} is no folder; type imagefolder:FOLDER")
    test = next((folder / x for x in ("val", "test") if (folder / x).is_dir()), None)
    apart = (folder / "train").is_dir() and test is not None
    parts = [folder / "train", test] if apart and test is not None else [folder]
    names = sorted({x.name for part in parts for x in part.iterdir() if x.is_dir()})
    if not names:
        raise KeyFiltersError(f"{folder} has no folders; one for each class is expected in it")
    splits = []
    for part in parts:
        files = [
            (file, label)
            for label, name in enumerate(names)
            for file in sorted((part / name).rglob("*"))
            if file.is_file()
        ]
        labels = np.array([label for _, label in files], dtype=np.int64)
        splits.append(_items([file for file, _ in files], labels, read_image, request))
    return *(splits if apart else _held_out(splits[0], request.seed)), names


def _torchvision(request: Request) -> Halves:
    from torchvision import datasets

    kind = getattr(datasets, request.argument, None)
    if kind is None:
        known = f"torchvision has no data set {request.argument!r}"
        raise KeyFiltersError(known + nearest(request.argument, datasets.__all__))
    accepted = inspect.signature(kind).parameters
    fixed = {
        name: value
        for name, value in (("root", request.root or "."), ("download", False))
        if name in accepted
    }
    halves: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        halves = [{"train": True}, {"train": False}]
    elif "split" in accepted:
        halves = [{"split": "train"}, {"split": "test"}]
    try:
        found = [kind(**fixed, **half) for half in halves]
    except (RuntimeError, FileNotFoundError, TypeError) as error:
        fetch = f"torchvision.datasets.{request.argument}({fixed.get('root')!r}, download=True)"
        message = f"torchvision:{request.argument} below root {fixed.get('root')!r}: {error}"
        raise KeyFiltersError(f"{message}; fetch it with {fetch}, or set root") from error
    splits = []
    for one in found:
        labels = next((getattr(one, x) for x in ("targets", "labels") if hasattr(one, x)), None)
        if labels is None:
            labels = [one[i][1] for i in range(len(one))]
        try:
            numbers = np.array([int(x) for x in labels], dtype=np.int64)
        except (TypeError, ValueError) as error:
            message = f"torchvision:{request.argument} has no whole numbers as labels"
            raise KeyFiltersError(
                f"{message} ({error}); choose a set for classification"
            ) from error
        splits.append(_items(one, numbers, lambda item: np.array(item[0].convert("RGB")), request))
    count = max(int(split.labels.max()) for split in splits) + 1
    names = [str(x) for x in getattr(found[0], "classes", range(count))]
    return *(splits if len(splits) == 2 else _held_out(splits[0], request.seed)), names


def _hugging_face(request: Request) -> Halves:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading data sets of the Hugging Face hub", "hf") from error
    try:
        found = datasets.load_dataset(request.argument)
    except Exception as error:  # the hub, the network and file formats raise nearly anything
        message = f"hf:{request.argument} cannot be loaded ({type(error).__name__}: {error})"
        raise KeyFiltersError(message) from error
    parts = ["train", *(x for x in ("test", "validation") if x in found)][:2]
    if "train" not in found:
        raise KeyFiltersError(f"hf:{request.argument} has {', '.join(found)}; train is expected")
    kinds = {type(kind).__name__: column for column, kind in found["train"].features.items()}
    if not {"Image", "ClassLabel"} <= set(kinds):
        columns = ", ".join(f"{column}: {kind}" for kind, column in kinds.items())
        message = f"hf:{request.argument} has {columns}; an Image and a ClassLabel are expected"
        raise KeyFiltersError(message)
    image, label = kinds["Image"], kinds["ClassLabel"]

    def decode(row: Any) -> NDArray[np.uint8]:
        return np.array(row[image].convert("RGB"))

    splits = [
        _items(found[part], np.array(found[part][label], dtype=np.int64), decode, request)
        for part in parts
    ]
    halves = splits if len(splits) == 2 else _held_out(splits[0], request.seed)
    return *halves, found["train"].features[label].names


def _array(images: Tensor, labels: NDArray[np.int64]) -> Split:
    """A half that lies in memory."""

    def read(rows: NDArray[np.int64], skipped: Skipped) -> tuple[Tensor, NDArray[np.int64]]:
        return images[torch.from_numpy(rows)], np.arange(len(rows))

    return Split(labels, read)


def _items(
    source: Any,
    labels: NDArray[np.int64],
    decode: Callable[[Any], NDArray[np.uint8]],
    request: Request,
) -> Split:
    """A half whose images are read one by one and cut to squares of one side."""
    side = request.resolution or 224

    def read(rows: NDArray[np.int64], skipped: Skipped) -> tuple[Tensor, NDArray[np.int64]]:
        _require_memory(len(rows), side)
        images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)
        kept: list[int] = []
        for i, row in enumerate(rows.tolist()):
            try:
                images[len(kept)] = centre_crop(decode(source[row]), side)
                kept.append(i)
            except Exception as error:  # damaged files make decoders raise nearly anything
                name = str(source[row]) if isinstance(source, list) else f"image {row}"
                named = "" if isinstance(error, KeyFiltersError) else f"{type(error).__name__}: "
                skipped.append((name, f"{named}{error}"))
        if not kept:
            seen = "; ".join(": ".join(x) for x in skipped[:3]) or "none is there"
            raise KeyFiltersError(f"none of {len(rows)} images can be read ({seen})")
        return images[: len(kept)], np.array(kept)

    return Split(labels, read)


def _require_memory(count: int, side: int) -> None:
    from psutil import virtual_memory

    need, free = count * 3 * side**2 / 1e9, virtual_memory().available / 1e9
    if need > 0.8 * free:
        got = f"{count:,} images of {side}×{side} take {need:.1f} GB, {free:.1f} GB are free"
        raise KeyFiltersError(f"{got}; set samples, classes or a smaller resolution")


def _held_out(split: Split, seed: int) -> tuple[Split, Split]:
    """Keep a share of each class for testing."""
    test = stratified(split.labels, round(HELD * len(split.labels)), seed)
    train = np.setdiff1d(np.arange(len(split.labels)), test)

    def part(own: NDArray[np.int64]) -> Split:
        return Split(split.labels[own], lambda rows, skipped: split.read(own[rows], skipped))

    return part(train), part(test)


READERS: dict[str, Callable[[Request], Halves]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "photos": _photos,
    "imagefolder": _image_folder,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}

"""The sources of labelled images, and how one is parted into training, validation and test images.

A reader returns the labels of all images of every part and what decodes them, so that a few classes
of a large folder cost no more than they hold.
"""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from keyfilters.training.dataset import Failed, Items
from keyfilters.training.images import photographs, random_crops, refusal, square, why
from keyfilters.training.recipe import DataSource

__all__ = ["READERS", "Part", "find_parts", "first_side", "stratified"]

SIDE = 224  # largest side in pixels where none is asked for and sizes differ
HELD = 0.2  # share of each class kept for testing where a source has no test images
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


def find_parts(asked: DataSource, skipped: Failed) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the parts of a data set and the names of its classes; raises as `load_data`.

    Name and reason of every image that cannot be read are appended to `skipped`.
    """
    kind, _, argument = asked.name.partition(":")
    if kind not in READERS:
        known = f"no data set is called {asked.name!r}; {', '.join(READERS)} are known"
        raise KeyFiltersError(known + nearest(kind, READERS))
    parts, names = READERS[kind](argument, asked)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        parts["training"], parts["test"] = _held_out(parts["training"], HELD)
    if not asked.validation:
        parts.pop("validation", None)
    elif "validation" not in parts:
        parts["training"], parts["validation"] = _held_out(parts["training"], asked.validation)
    chosen = _chosen(asked.classes, names, asked.name)
    for part, found in parts.items():
        own = _of_classes(found, chosen, asked.name)
        count = asked.samples if part == "training" else 0
        if part == "validation" and asked.samples:
            count = min(len(own.labels), max(1, round(asked.validation * asked.samples)))
        if count > len(own.labels):
            got = f"{asked.name} has {len(own.labels)} training images"
            raise KeyFiltersError(f"{got}; samples is {asked.samples}")
        parts[part] = own.take(stratified(own.labels, count, asked.seed)) if count else own
    parts = _streamable(parts, skipped) if asked.stream else _decoded(parts, asked, skipped)
    if skipped and asked.unreadable == "stop":
        raise KeyFiltersError(f"{asked.name}: {skipped[0][0]} cannot be read ({skipped[0][1]})")
    return parts, tuple(names[i] for i in chosen)


def _held_out(part: Part, share: float) -> tuple[Part, Part]:
    """Hold out a share of each class, the same one with every seed."""
    held = stratified(part.labels, max(1, round(share * len(part.labels))), seed=0)
    return part.take(np.setdiff1d(np.arange(len(part.labels)), held)), part.take(held)


def _chosen(classes: Sequence[str | int], names: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the classes asked for."""
    chosen = []
    for asked in classes:
        if str(asked) in names:
            chosen.append(list(names).index(str(asked)))
        elif isinstance(asked, int) and 0 <= asked < len(names):
            chosen.append(asked)
        else:
            shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
            message = f"{name} has no class {asked!r}; its {len(names)} classes are: {shown}"
            raise KeyFiltersError(message + nearest(str(asked), names))
    if len(set(chosen)) < len(chosen):
        raise KeyFiltersError(f"classes names one twice: {', '.join(map(str, classes))}")
    return chosen or list(range(len(names)))


def _of_classes(part: Part, chosen: Sequence[int], name: str) -> Part:
    """Keep images of the chosen classes, numbered in their order."""
    new = np.full(max(int(part.labels.max(initial=0)), *chosen) + 1, -1)
    new[list(chosen)] = np.arange(len(chosen))
    labels = np.where(part.labels < 0, -1, new[part.labels])  # below 0: of no class
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise KeyFiltersError(f"{name} has no image of these classes")
    return part.take(rows, labels[rows].astype(np.int64))


def _streamable(parts: Mapping[str, Part], skipped: Failed) -> dict[str, Part]:
    """Leave out files that are no images by their names; none is opened."""
    found = {}
    for name, part in parts.items():
        if isinstance(part.images, Tensor):
            raise KeyFiltersError("data.stream is true for images in memory; leave it out")
        paths = [part.images.path(i) for i in range(len(part.labels))]
        refused = ["" if part.images.decode else refusal(path.suffix) for path in paths]
        skipped += [(str(path), why) for path, why in zip(paths, refused, strict=True) if why]
        found[name] = part.take(np.flatnonzero([not why for why in refused]))
    return found


def first_side(items: Items) -> int:
    """Return the shorter side of the first image that can be read, in pixels, at most 224."""
    for i in range(len(items)):
        with suppress(Exception):  # damaged files make decoders raise nearly anything
            return min(SIDE, *items.image(i).size)
    raise KeyFiltersError(f"none of {len(items)} images can be read")


class _UnevenError(Exception):
    """Images differ in size or in the number of channels."""


def _decoded(parts: Mapping[str, Part], asked: DataSource, skipped: Failed) -> dict[str, Part]:
    """Decode all images: as they are if they have one shape, otherwise as squares in colour."""
    try:
        shape: list[tuple[int, ...]] = []
        return {
            x: _decode(part, asked.resolution, False, shape, skipped) for x, part in parts.items()
        }
    except _UnevenError:
        side = asked.resolution or min(SIDE, *shape[0][1:])
    skipped.clear()
    return {name: _decode(part, side, True, [], skipped) for name, part in parts.items()}


def _decode(
    part: Part, side: int, colour: bool, shape: list[tuple[int, ...]], skipped: Failed
) -> Part:
    """Decode a part; `shape` gets the shape of the first image of all parts."""
    if isinstance(part.images, Tensor):
        return part
    items, images = part.images, np.empty(0, np.uint8)
    kept: list[int] = []
    for i in range(len(items)):
        try:
            image = items.image(i)
            image = image if image.mode == "L" and not colour else image.convert("RGB")
            pixels = np.atleast_3d(np.array(square(image, side) if side else image))
        except Exception as error:  # damaged files make decoders raise nearly anything
            skipped.append((str(items.folder / items.path(i)), why(error)))
            continue
        pixels = pixels.transpose(2, 0, 1)
        shape += [pixels.shape] if not shape else []
        if pixels.shape != shape[0]:
            raise _UnevenError
        if not len(images):
            _require_memory(len(items), pixels.shape)
            images = np.empty((len(items), *pixels.shape), np.uint8)
        images[len(kept)] = pixels
        kept.append(i)
    if not kept:
        seen = "; ".join(": ".join(x) for x in skipped[:3]) or "none is there"
        raise KeyFiltersError(f"none of {len(items)} images can be read ({seen})")
    return Part(part.labels[kept], torch.from_numpy(images[: len(kept)]))


def _require_memory(count: int, shape: tuple[int, ...]) -> None:
    from psutil import virtual_memory

    need, free = count * np.prod(shape) / 1e9, virtual_memory().available / 1e9
    if need > 0.8 * free:
        got = (
            f"{count:,} images of {shape[1]}×{shape[2]} take {need:.1f} GB, {free:.1f} GB are free"
        )
        raise KeyFiltersError(f"{got}; set samples, classes, a smaller resolution or stream=true")


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

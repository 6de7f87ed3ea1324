"""How a source of labelled images is parted into training, validation and test images.

Images are decoded last, so that a few classes of a large folder cost no more than they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.dataset import Failed, Items
from keyfilters.training.images import refusal, square, why
from keyfilters.training.readers import READERS, Part
from keyfilters.training.recipe import DataSource

__all__ = ["find_parts", "first_side", "stratified"]

SIDE = 224  # largest side in pixels where none is asked for and sizes differ
HELD = 0.2  # share of each class kept for testing where a source has no test images


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

"""How a source of labelled images is parted into training, validation and test images.

Images are decoded last, so that a few classes of a large folder cost no more than they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError, nearest, needing
from keyfilters.training.images import Failed, pixels, refusal, square, why
from keyfilters.training.readers import READERS, Items, Part
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
    counts = {"training": asked.samples, "validation": round(asked.validation * asked.samples)}
    for part, found in parts.items():
        labels = pd.Index(chosen).get_indexer(found.labels)  # −1 for all other classes
        own = Part(labels.astype(np.int64), found.images).take(np.flatnonzero(labels >= 0))
        if not len(own.labels):
            raise KeyFiltersError(f"{asked.name} has no image of these classes")
        if part == "training" and asked.samples > len(own.labels):
            got = f"{asked.name} has {len(own.labels)} training images"
            raise KeyFiltersError(f"{got}; samples is {asked.samples}")
        if asked.samples and part in counts:
            count = min(len(own.labels), max(1, counts[part]))
            own = own.take(stratified(own.labels, count, asked.seed))
        parts[part] = own
    if asked.stream:
        parts = {name: _streamable(part, skipped) for name, part in parts.items()}
    else:
        parts = _decoded(parts, asked.resolution, skipped)
    if skipped and asked.unreadable == "stop":
        raise KeyFiltersError(f"{asked.name}: {skipped[0][0]} cannot be read ({skipped[0][1]})")
    return parts, tuple(names[i] for i in chosen)


def _held_out(part: Part, share: float) -> tuple[Part, Part]:
    """Hold out a share of each class, the same one with every seed."""
    held = stratified(part.labels, max(1, round(share * len(part.labels))), seed=0)
    return part.take(np.setdiff1d(np.arange(len(part.labels)), held)), part.take(held)


def _chosen(classes: Sequence[str | int], names: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the classes asked for."""
    known = list(map(str, names))
    chosen = [known.index(str(x)) if str(x) in known else x for x in classes]
    for wrong in (x for x in chosen if x not in range(len(known))):
        shown = ", ".join(known[:20]) + " …" * (len(known) > 20)
        message = f"{name} has no class {wrong!r}; its {len(known)} classes are: {shown}"
        raise KeyFiltersError(message + nearest(str(wrong), known))
    if len(set(chosen)) < len(chosen):
        raise KeyFiltersError(f"classes names one twice: {', '.join(map(str, classes))}")
    return [int(x) for x in chosen] or list(range(len(known)))


def _streamable(part: Part, skipped: Failed) -> Part:
    """Leave out files that are no images by their names; none is opened."""
    if isinstance(part.images, Tensor):
        raise KeyFiltersError("data.stream is true for images in memory; leave it out")
    if part.images.decode:
        return part
    paths = [part.images.path(i) for i in range(len(part.labels))]
    reasons = [refusal(path.suffix) for path in paths]
    skipped += [(str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    return part.take(np.flatnonzero([not reason for reason in reasons]))


def first_side(items: Items) -> int:
    """Return the shorter side of the first image that can be read, in pixels, at most 224."""
    for i in range(len(items)):
        with suppress(Exception):  # damaged files make decoders raise nearly anything
            return min(SIDE, *items.image(i).size)
    raise KeyFiltersError(f"none of {len(items)} images can be read")


class _UnevenError(Exception):
    """Images differ in size or in the number of channels."""


def _decoded(parts: dict[str, Part], side: int, skipped: Failed) -> dict[str, Part]:
    """Decode all images: as they are if they have one shape, otherwise as squares in colour."""
    shapes: list[tuple[int, ...]] = []
    try:
        return {name: _decode(x, side, skipped, shapes) for name, x in parts.items()}
    except _UnevenError:
        skipped.clear()
        side = side or min(SIDE, *shapes[0][1:])
        return {name: _decode(x, side, skipped, [(3, side, side)]) for name, x in parts.items()}


def _decode(part: Part, side: int, skipped: Failed, shapes: list[tuple[int, ...]]) -> Part:
    """Decode images of one shape, the first of `shapes` if there is one; grey ones stay grey."""
    if isinstance(part.images, Tensor):
        return part
    items, images, kept = part.images, torch.empty(0), list[int]()
    for i in range(len(items)):
        try:
            image = items.image(i)
            grey = image.mode == "L" and shapes[:1] != [(3, side, side)]
            image = image if grey else image.convert("RGB")
            found = pixels(square(image, side) if side else image)
        except Exception as error:  # damaged files make decoders raise nearly anything
            skipped.append((items.path(i).as_posix(), why(error)))
            continue
        shapes += [found.shape] if not shapes else []
        if found.shape != shapes[0]:
            raise _UnevenError
        if not kept:
            _require_memory(len(items), found.shape)
            images = torch.empty(len(items), *found.shape, dtype=torch.uint8)
        images[len(kept)] = found
        kept.append(i)
    if not kept:
        seen = "; ".join(": ".join(x) for x in skipped[:3]) or "none is there"
        raise KeyFiltersError(f"none of {len(items)} images can be read ({seen})")
    return Part(part.labels[kept], images[: len(kept)])


def _require_memory(count: int, shape: tuple[int, ...]) -> None:
    with needing("train", "reading images"):
        from psutil import virtual_memory

    need, free = count * np.prod(shape) / 1e9, virtual_memory().available / 1e9
    if need > 0.8 * free:
        size = f"{count:,} images of {shape[1]}×{shape[2]} take {need:.1f} GB"
        mend = "set samples, classes, a smaller resolution or stream=true"
        raise KeyFiltersError(f"{size}, {free:.1f} GB are free; {mend}")


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

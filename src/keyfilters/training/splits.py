"""A half of a source of labelled images, and how a source without a test half is parted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.training.data import centre_crop

__all__ = ["Halves", "Request", "Split", "held_out", "in_memory", "one_by_one", "stratified"]

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
        labels: ``(n,)`` integers; below 0 where an image has no label.
        read: maps positions ``(m,)`` to uint8 images ``(k, c, h, w)`` and to those of the m that
            could be read ``(k,)``; the others are appended to its second argument.
        files: ``(n,)`` names below the folder that was asked for, in bytes; empty where images are
            no files of their own.
    """

    labels: NDArray[np.int64]
    read: Callable[[NDArray[np.int64], Skipped], tuple[Tensor, NDArray[np.int64]]]
    files: NDArray[np.bytes_] = field(default_factory=lambda: np.array([], "S1"))


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


def in_memory(images: Tensor, labels: NDArray[np.int64]) -> Split:
    """A half that lies in memory."""

    def read(rows: NDArray[np.int64], skipped: Skipped) -> tuple[Tensor, NDArray[np.int64]]:
        return images[torch.from_numpy(rows)], np.arange(len(rows))

    return Split(labels, read)


def one_by_one(
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


def held_out(split: Split) -> tuple[Split, Split]:
    """Keep a fifth of each class for testing, the same one with every seed."""
    test = stratified(split.labels, round(HELD * len(split.labels)), seed=0)
    train = np.setdiff1d(np.arange(len(split.labels)), test)

    def part(own: NDArray[np.int64]) -> Split:
        files = split.files[own] if len(split.files) else split.files
        return Split(split.labels[own], lambda rows, left: split.read(own[rows], left), files)

    return part(train), part(test)

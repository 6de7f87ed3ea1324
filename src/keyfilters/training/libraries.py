"""Labelled images from the libraries of others: torchvision, and the Hugging Face hub."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, MissingExtraError, nearest
from keyfilters.training.splits import Halves, Request, held_out, one_by_one

__all__ = ["hugging_face", "torchvision"]


def torchvision(request: Request) -> Halves:
    """Take a class of torchvision.datasets by its two halves, or part the whole."""
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
    except ValueError as error:
        mend = "take another, or save its images as FOLDER/train/CLASS and type imagefolder:FOLDER"
        message = f"torchvision:{request.argument} cannot be asked for halves by {halves}: {error}"
        raise KeyFiltersError(f"{message}; {mend}") from error
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
        splits.append(
            one_by_one(one, numbers, lambda item: np.array(item[0].convert("RGB")), request)
        )
    count = max(int(split.labels.max()) for split in splits) + 1
    names = [str(x) for x in getattr(found[0], "classes", range(count))]
    return *(splits if len(splits) == 2 else held_out(splits[0])), names


def hugging_face(request: Request) -> Halves:
    """Take train, and test or validation where one of them has labels, or part train."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading data sets of the Hugging Face hub", "hf") from error
    name, *columns = request.argument.split("#")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub, the network and file formats raise nearly anything
        message = f"hf:{name} cannot be loaded ({type(error).__name__}: {error})"
        raise KeyFiltersError(message) from error
    if "train" not in found:
        raise KeyFiltersError(f"hf:{name} has {', '.join(found)}; train is expected")
    kinds = {column: type(kind).__name__ for column, kind in found["train"].features.items()}
    image, label = (_column(name, kinds, kind, columns) for kind in ("Image", "ClassLabel"))
    labels = {
        part: np.array([-1 if x is None else x for x in found[part][label]], dtype=np.int64)
        for part in ("train", "test", "validation")
        if part in found
    }
    tests = [part for part in labels if part != "train" and (labels[part] >= 0).any()]

    def decode(row: Any) -> NDArray[np.uint8]:
        return np.array(row[image].convert("RGB"))

    splits = [
        one_by_one(found[part], labels[part], decode, request) for part in ("train", *tests[:1])
    ]
    halves = splits if len(splits) == 2 else held_out(splits[0])
    return *halves, found["train"].features[label].names


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

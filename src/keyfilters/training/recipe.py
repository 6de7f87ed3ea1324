"""A recipe: everything that a training run depends on, in one TOML file.

    seed = 0

    [model]
    name = "convnextv2_atto"

    [data]
    name = "fashion-mnist"
    resolution = 32

    [schedule]
    epochs = 20

A missing key has the default below. Where a value can be switched off, 0 does it. Sections are
pydantic dataclasses, so types and bounds are checked; ``dataclasses.replace`` changes one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Strict, TypeAdapter, ValidationError

from keyfilters.errors import KeyFiltersError
from keyfilters.training.fields import (
    Bool,
    Moments,
    Number,
    Positive,
    Share,
    Table,
    Text,
    Whole,
    doc,
    section,
    sentence,
)

__all__ = ["Augmentation", "DataSource", "Recipe"]

LR = 1e-3  # where a recipe names none


@section
class Model:
    """A timm model; unused where a module is given to `train`."""

    name: Annotated[Text, doc("as in timm.list_models()")] = "convnextv2_atto"
    options: Annotated[Table, doc("more arguments of timm.create_model")] = field(
        default_factory=dict
    )


@section
class DataSource:
    """The images, see `load_data`; unused where `Data` is given to `train`."""

    name: Annotated[Text, doc("as `load_data` takes it")] = "digits"
    classes: Annotated[
        tuple[Text | Annotated[int, Strict()], ...], doc("names or numbers, in order; none: all")
    ] = ()
    samples: Annotated[Whole, doc("training images, drawn by seed, even by class; 0: all")] = 0
    channels: Annotated[Whole, doc("1 (mean), 3 (grey repeated) or 0: as they are", le=3)] = 0
    resolution: Annotated[
        Whole, doc("side in pixels, of the middle square; 0: see `load_data`")
    ] = 0
    root: Annotated[Text, doc("folder of torchvision's data sets")] = ""
    unreadable: Annotated[
        Literal["skip", "stop"], doc("damaged images: name them in a list, or refuse them")
    ] = "skip"
    seed: Annotated[Whole, doc("of samples and of the crops of photos")] = 0
    mean: Annotated[
        Moments, doc("one a channel, 0 to 1; none: the images', streamed ImageNet's")
    ] = ()
    std: Annotated[Moments, doc("likewise")] = ()
    validation: Annotated[
        Share, doc("share of each class of the training images that chooses the epoch", lt=1)
    ] = 0.1
    stream: Annotated[Bool, doc("decode images when a batch needs them")] = False
    workers: Annotated[Whole, doc("decoding processes for each that trains, if streamed")] = 4


@section
class Optimiser:
    """One of timm's optimisers."""

    name: Annotated[Text, doc("as in timm.optim.list_optimizers()")] = "adamw"
    lr: Annotated[Positive, doc("learning rate after the warm-up")] = LR
    base_lr: Annotated[Number, doc("lr for 256 images, in place of lr; 0: none")] = 0.0
    weight_decay: Annotated[Number, doc("none on biases and other vectors")] = 0.05
    layer_decay: Annotated[Share, doc("factor of lr a layer, from the head; 1: none", gt=0)] = 1.0
    clip: Annotated[Number, doc("largest norm of the gradient; 0: no clipping")] = 0.0
    options: Annotated[Table, doc("more arguments, such as betas")] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base_lr and self.lr != LR:
            got = f"optimiser.lr is {self.lr:g} and optimiser.base_lr is {self.base_lr:g}"
            raise KeyFiltersError(f"{got}; give one of them (base_lr=0 is none)")


@section
class Schedule:
    """How long to train: linear warm-up, then a cosine down to `min_lr` (timm's)."""

    epochs: Annotated[Positive, doc("passes over the training images")] = 10.0
    steps: Annotated[Whole, doc("optimiser steps, in place of epochs; 0: none")] = 0
    warmup_epochs: Annotated[Number, doc("length of the warm-up in epochs")] = 0.0
    min_lr: Annotated[Number, doc("learning rate at the end")] = 0.0
    select: Annotated[
        Literal["best", "last"],
        doc("weights to keep: those best on validation images, or the last"),
    ] = "best"


@section
class Batch:
    """How many images make a step."""

    size: Annotated[Whole, doc("images of a step, over all processes and parts", ge=1)] = 64
    accumulation: Annotated[Whole, doc("parts in which a process computes its share", ge=1)] = 1
    sync_batchnorm: Annotated[Bool, doc("share batch statistics among processes (GPUs)")] = False

    def __post_init__(self) -> None:
        if self.size % self.accumulation:
            got = f"batch.size {self.size} in {self.accumulation} parts"
            raise KeyFiltersError(f"{got}; a multiple of batch.accumulation is expected")


@section
class Augmentation:
    """What is done to training images; scale, policy and interpolation only to streamed ones."""

    crop: Annotated[Whole, doc("black border in pixels, to cut images anew; 0: none")] = 0
    scale: Annotated[Share, doc("smallest area of a random resized crop; 0: middle square")] = 0.0
    auto_augment: Annotated[Text, doc("timm's policy, such as rand-m9-mstd0.5-inc1")] = ""
    interpolation: Annotated[
        Literal["bicubic", "bilinear", "random"], doc("how images are resized")
    ] = "bicubic"
    flip: Annotated[Bool, doc("whether half of the images are mirrored")] = False
    mixup: Annotated[Number, doc("alpha of timm's Mixup; 0: none")] = 0.0
    cutmix: Annotated[Number, doc("alpha of CutMix; with both, each batch draws one")] = 0.0
    erasing: Annotated[Share, doc("probability of timm's RandomErasing (noise)")] = 0.0
    label_smoothing: Annotated[Share, doc("share of the label for all classes", le=0.999)] = 0.0

    def __post_init__(self) -> None:
        if self.crop and self.scale:
            got = f"augmentation.crop is {self.crop} and augmentation.scale {self.scale:g}"
            raise KeyFiltersError(f"{got}; both cut at random: set one of them to 0")


@section
class Ema:
    """A running mean of the weights (timm's ModelEmaV3)."""

    decay: Annotated[Share, doc("weight of the past, as 0.9998; 0: no mean", le=0.999999)] = 0.0
    warmup: Annotated[Bool, doc("whether the decay grows from 0")] = True


@section
class Checkpoint:
    """What is written on the way; results do not depend on it."""

    steps: Annotated[Whole, doc("steps between two saved states", ge=1)] = 500
    keep: Annotated[tuple[Whole, ...], doc("steps whose weights stay: step-N.safetensors")] = ()
    log_with: Annotated[tuple[Text, ...], doc("trackers: tensorboard, wandb, …")] = ()


@section
class Recipe:
    """Everything that a run depends on; a missing key has its default.

    Raises:
        KeyFiltersError: a value of another type or out of range.

    >>> recipe = Recipe.from_dict({"optimiser": {"lr": 0.002}, "schedule": {"epochs": 3}})
    >>> recipe.optimiser.lr, recipe.steps(1438), recipe == Recipe.from_dict(recipe.to_dict())
    (0.002, 66, True)
    >>> Recipe.from_dict({"optimiser": {"rate": 0.002}})
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: 'rate' is no key of [optimiser]; known are name, lr, ...
    """

    seed: Annotated[Whole, doc("of weights, order, augmentation and dropout")] = 0
    precision: Annotated[
        Literal["no", "fp16", "bf16"], doc("no is float32; else where the device can")
    ] = "no"
    channels_last: Annotated[Bool, doc("memory layout of images and weights")] = False
    compile: Annotated[Bool, doc("whether torch.compile translates the model")] = False
    model: Model = field(default_factory=Model)
    data: DataSource = field(default_factory=DataSource)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    batch: Batch = field(default_factory=Batch)
    augmentation: Augmentation = field(default_factory=Augmentation)
    ema: Ema = field(default_factory=Ema)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *changes: str) -> Self:
        """Read a TOML file.

        Args:
            path: the file.
            changes: such as ``"optimiser.lr=0.01"``, which override the file.

        Raises:
            KeyFiltersError: no such file, no TOML, or a key or value as in `from_dict`.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise KeyFiltersError(f"cannot read {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise KeyFiltersError(f"{path} is no TOML file: {error}") from error
        for change in changes:
            _change(values, change)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Make a recipe from nested tables, as a TOML file has them.

        Raises:
            KeyFiltersError: a key that is unknown, or a value of another type or out of range.
        """
        try:
            made: Self = TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            raise KeyFiltersError(sentence(cls, error)) from error
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal recipe."""
        return asdict(self)

    def to_toml(self) -> str:
        """Return the text of a file that `load` reads as an equal recipe."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @property
    def peak_lr(self) -> float:
        """The largest learning rate: ``lr``, or ``base_lr * batch.size / 256`` where it is set.

        >>> recipe = {"optimiser": {"base_lr": 8e-4}, "batch": {"size": 1024}}
        >>> Recipe.from_dict(recipe).peak_lr
        0.0032
        """
        return self.optimiser.base_lr * self.batch.size / 256 or self.optimiser.lr

    def steps(self, images: int) -> int:
        """Return the number of optimiser steps on so many training images."""
        per_epoch = images // self.batch.size
        return self.schedule.steps or max(1, ceil(self.schedule.epochs * per_epoch))


def _change(values: dict[str, Any], change: str) -> None:
    """Apply a change such as ``section.key=value`` to nested tables."""
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key or len(sections) > 2:
        raise KeyFiltersError(f"{change!r} changes no recipe; type section.key=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes
    for part in sections:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise KeyFiltersError(f"{change!r}: {part} is no section")
    values[key] = value

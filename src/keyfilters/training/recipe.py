"""A recipe: everything that a training run depends on, in one TOML file.

    seed = 0

    [model]
    name = "convnextv2_atto"

    [data]
    name = "fashion-mnist"
    resolution = 32

    [schedule]
    epochs = 20

What a file leaves out has the default below. Where a value can be switched off, 0 does it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar, Self

from keyfilters.errors import KeyFiltersError
from keyfilters.training.sections import Section, choice, number
from keyfilters.training.toml_files import read_toml, toml_text

__all__ = [
    "Augmentation",
    "Batch",
    "Checkpoint",
    "DataSource",
    "Ema",
    "Model",
    "Optimiser",
    "Recipe",
    "Schedule",
]

LR = 1e-3  # where a recipe names none


@dataclass(frozen=True)
class Model(Section):
    """A timm model; unused where a module is given to `train`.

    Attributes:
        name: as in ``timm.list_models()``.
        options: further arguments of ``timm.create_model``, such as ``{drop_path_rate = 0.1}``;
            the numbers of classes and of channels come from the data.
    """

    name: str = "convnextv2_atto"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource(Section):
    """The images, by the arguments of `load_data`; unused where `Data` is given to `train`."""

    section: ClassVar[str] = "data"

    name: str = "digits"
    classes: tuple[str | int, ...] = ()
    samples: int = number(0, least=0)
    channels: int = number(0, least=0, most=3)
    resolution: int = number(0, least=0)
    root: str = ""
    unreadable: str = choice("skip", "stop")
    seed: int = number(0, least=0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stream: bool = False
    workers: int = number(4, least=0)


@dataclass(frozen=True)
class Optimiser(Section):
    """One of timm's optimisers.

    Attributes:
        name: as in ``timm.optim.list_optimizers()``.
        lr: largest learning rate, reached after the warm-up.
        base_lr: the same for 256 images a step, in place of `lr`: it is multiplied by
            ``batch.size / 256``; 0 is none.
        weight_decay: none is applied to biases and other vectors.
        layer_decay: factor of the learning rate from one layer to the one before, see
            `keyfilters.training.layer_decay`; 1 is none.
        clip: largest norm of the whole gradient; 0 does not clip.
        options: further arguments of the optimiser, such as ``{betas = [0.9, 0.95]}``.
    """

    name: str = "adamw"
    lr: float = number(LR, above=0)
    base_lr: float = number(0.0, least=0)
    weight_decay: float = number(0.05, least=0)
    layer_decay: float = number(1.0, above=0, most=1)
    clip: float = number(0.0, least=0)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_lr and self.lr != LR:
            got = f"optimiser.lr is {self.lr:g} and optimiser.base_lr is {self.base_lr:g}"
            raise KeyFiltersError(f"{got}; give one of them (base_lr=0 is none)")


@dataclass(frozen=True)
class Schedule(Section):
    """How long to train: linear warm-up from 0, then a cosine down to `min_lr`.

    Attributes:
        epochs: passes over the training images; fractions are allowed.
        steps: number of optimiser steps; where above 0 it counts, not `epochs`.
        warmup_epochs: length of the warm-up.
        min_lr: learning rate at the end.
    """

    epochs: float = number(10.0, above=0)
    steps: int = number(0, least=0)
    warmup_epochs: float = number(0.0, least=0)
    min_lr: float = number(0.0, least=0)


@dataclass(frozen=True)
class Batch(Section):
    """How many images make a step.

    Attributes:
        size: images of one optimiser step, over all processes and parts.
        accumulation: number of parts in which each process computes its share.
    """

    size: int = number(64, least=1)
    accumulation: int = number(1, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % self.accumulation:
            got = f"batch.size {self.size} in {self.accumulation} parts"
            raise KeyFiltersError(f"{got}; a multiple of batch.accumulation is expected")


@dataclass(frozen=True)
class Augmentation(Section):
    """What is done to training images.

    Attributes:
        crop: pixels of black border from which images are cut anew; 0 is none.
        scale: smallest share of its area to which a streamed image is cut at random before it is
            resized, such as 0.08; 0 cuts the largest square from the middle.
        auto_augment: one of timm's policies for streamed images, such as
            ``"rand-m9-mstd0.5-inc1"``; empty is none.
        interpolation: how streamed images are resized; "random" is in training bilinear or bicubic.
        flip: whether half of the images are mirrored.
        mixup: parameter α of timm's Mixup; 0 is none.
        cutmix: parameter α of CutMix; with both, each batch draws one of them.
        erasing: probability of timm's RandomErasing (noise) for each image.
        label_smoothing: share of the label that is spread over all classes.
    """

    crop: int = number(0, least=0)
    scale: float = number(0.0, least=0, most=1)
    auto_augment: str = ""
    interpolation: str = choice("bicubic", "bilinear", "random")
    flip: bool = False
    mixup: float = number(0.0, least=0)
    cutmix: float = number(0.0, least=0)
    erasing: float = number(0.0, least=0, most=1)
    label_smoothing: float = number(0.0, least=0, most=0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop and self.scale:
            got = f"augmentation.crop is {self.crop} and augmentation.scale {self.scale:g}"
            raise KeyFiltersError(f"{got}; both cut at random: set one of them to 0")


@dataclass(frozen=True)
class Ema(Section):
    """A running mean of the weights (timm's ModelEmaV3).

    Attributes:
        decay: weight of the past, such as 0.9998; 0 keeps no mean.
        warmup: whether the decay grows from 0, so that the first weights are soon forgotten.
    """

    decay: float = number(0.0, least=0, most=0.999999)
    warmup: bool = True


@dataclass(frozen=True)
class Checkpoint(Section):
    """What is written on the way; results do not depend on it.

    Attributes:
        steps: after how many steps the state is written, from which a run goes on.
        keep: steps whose weights are kept, in ``step-N.safetensors``; 0 is before the first.
    """

    steps: int = number(500, least=1)
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(type(step) is not int or step < 0 for step in self.keep):
            got = f"checkpoint.keep is {list(self.keep)}"
            raise KeyFiltersError(f"{got}; numbers of steps, 0 or more, are expected")


@dataclass(frozen=True)
class Recipe(Section):
    """Everything that a run depends on; ``dataclasses.replace`` changes a section.

    Attributes:
        seed: of the weights, the order of the images, augmentation and dropout.
        precision: "no" (float32), "fp16" or "bf16", where the device has it.
        channels_last: whether images and weights lie in memory channel by channel last.
        compile: whether torch.compile translates the model.

    Raises:
        KeyFiltersError: a value of another type or out of range.

    >>> recipe = Recipe.from_dict({"optimiser": {"lr": 0.002}, "schedule": {"epochs": 3}})
    >>> recipe.optimiser.lr, recipe.steps(1438), recipe == Recipe.from_dict(recipe.to_dict())
    (0.002, 66, True)
    >>> Recipe.from_dict({"optimiser": {"rate": 0.002}})
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: 'rate' is no key of [optimiser]; known are name, lr, ...
    """

    seed: int = number(0, least=0)
    precision: str = choice("no", "fp16", "bf16")
    channels_last: bool = False
    compile: bool = False
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
            changes: such as ``"optimiser.lr=0.01"``, which count before the file.

        Raises:
            KeyFiltersError: no such file, no TOML, or a key or value as in `from_dict`.
        """
        return cls.from_dict(read_toml(path, changes))

    @property
    def peak_lr(self) -> float:
        """The largest learning rate, ``lr``, or ``base_lr * batch.size / 256`` where that is set.

        >>> recipe = {"optimiser": {"base_lr": 8e-4}, "batch": {"size": 1024}}
        >>> Recipe.from_dict(recipe).peak_lr
        0.0032
        """
        return self.optimiser.base_lr * self.batch.size / 256 or self.optimiser.lr

    def to_toml(self) -> str:
        """Return the text of a file that `load` reads as an equal recipe."""
        return toml_text(self.to_dict())

    def steps(self, images: int) -> int:
        """Return the number of optimiser steps on so many training images."""
        per_epoch = images // self.batch.size
        return self.schedule.steps or max(1, ceil(self.schedule.epochs * per_epoch))

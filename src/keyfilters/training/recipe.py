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

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Self

from keyfilters.errors import KeyFiltersError
from keyfilters.training.sections import Section, choice, number

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


@dataclass(frozen=True)
class Optimiser(Section):
    """One of timm's optimisers.

    Attributes:
        name: as in ``timm.optim.list_optimizers()``.
        lr: largest learning rate, reached after the warm-up.
        weight_decay: none is applied to biases and other vectors.
        layer_decay: factor of the learning rate from one layer to the one before; 1 is none.
        clip: largest norm of the whole gradient; 0 does not clip.
        options: further arguments of the optimiser, such as ``{betas = [0.9, 0.95]}``.
    """

    name: str = "adamw"
    lr: float = number(1e-3, above=0)
    weight_decay: float = number(0.05, least=0)
    layer_decay: float = number(1.0, above=0, most=1)
    clip: float = number(0.0, least=0)
    options: dict[str, Any] = field(default_factory=dict)


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
        flip: whether half of the images are mirrored.
        mixup: parameter α of timm's Mixup; 0 is none.
        cutmix: parameter α of CutMix; with both, each batch draws one of them.
        erasing: probability of timm's RandomErasing (noise) for each image.
        label_smoothing: share of the label that is spread over all classes.
    """

    crop: int = number(0, least=0)
    flip: bool = False
    mixup: float = number(0.0, least=0)
    cutmix: float = number(0.0, least=0)
    erasing: float = number(0.0, least=0, most=1)
    label_smoothing: float = number(0.0, least=0, most=0.999)


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
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise KeyFiltersError(f"cannot read {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise KeyFiltersError(f"{path} is no TOML file: {error}") from error
        for change in changes:
            _change(values, change)
        return cls.from_dict(values)

    def to_toml(self) -> str:
        """Return the text of a file that `load` reads as an equal recipe."""
        values = self.to_dict()
        sections = {key: value for key, value in values.items() if isinstance(value, dict)}
        lines = [f"{key} = {_toml(values[key])}" for key in values if key not in sections]
        for name, section in sections.items():
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in section.items()]
        return "\n".join(lines) + "\n"

    def steps(self, images: int) -> int:
        """Return the number of optimiser steps on so many training images."""
        per_epoch = images // self.batch.size
        return self.schedule.steps or max(1, ceil(self.schedule.epochs * per_epoch))


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key or len(sections) > 2:
        raise KeyFiltersError(f"{change!r} changes no recipe; type section.key=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise KeyFiltersError(f"{change!r}: {section} is no section")
    values[key] = value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)

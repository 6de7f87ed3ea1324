"""A recipe: everything that a training run depends on, in one TOML file.

A missing key has the default below. Where a value can be switched off, 0 does it. Sections are
pydantic dataclasses, so types and bounds are checked; ``dataclasses.replace`` changes one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field, fields, is_dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from keyfilters.errors import KeyFiltersError, nearest, needing

__all__ = ["Augmentation", "DataSource", "Recipe", "section"]

LR = 1e-3  # where a recipe names none
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

T = TypeVar("T")
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Moments = tuple[Annotated[float, Strict()], ...]
Table = dict[str, Any]
Names = tuple[Text | Annotated[int, Strict()], ...]


def doc(text: str, **options: Any) -> Any:
    """Return what pydantic knows of a field: its meaning and unit, default and bounds."""
    return Field(description=text, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(doc, field))
def section(cls: type[T]) -> type[T]:
    """Make a class a section of a recipe: frozen and checked, with errors of one sentence."""
    made: Any = dataclass(frozen=True, config=CONFIG)(cls)
    checked = made.__init__

    def __init__(self: Any, *values: Any, **named: Any) -> None:  # noqa: N807
        try:
            checked(self, *values, **named)
        except ValidationError as error:
            raise KeyFiltersError(_sentence(made, error)) from error

    made.__init__ = __init__
    return made


@section
class Model:
    """A timm model; unused where a module is given to `train`."""

    name: Text = doc("as in timm.list_models(), or convmixer", default="convnextv2_atto")
    options: Table = doc("more arguments of timm.create_model", default_factory=dict)


@section
class DataSource:
    """The images, see `load_data`; unused where `Data` is given to `train`."""

    name: Text = doc("where they come from, see docs/training.md", default="digits")
    classes: Names = doc("names or numbers, in order; none: all", default=())
    samples: Whole = doc("training images, drawn by seed, even by class; 0: all", default=0)
    channels: Literal[0, 1, 3] = doc("1 (mean), 3 (grey repeated) or 0: as they are", default=0)
    resolution: Whole = doc("side in pixels, of the middle square; 0: as they are", default=0)
    root: Text = doc("folder of torchvision's data sets", default="")
    unreadable: Literal["skip", "stop"] = doc("damaged images: leave out or end", default="skip")
    seed: Whole = doc("draws samples and the crops of photos", default=0)
    mean: Moments = doc("one a channel, 0 to 1; none: theirs; streamed: ImageNet's", default=())
    std: Moments = doc("likewise", default=())
    validation: Share = doc("share of each class held out to choose the epoch", default=0.1, lt=1)
    stream: Bool = doc("decode images when a batch needs them", default=False)
    workers: Whole = doc("decoding processes for each that trains, if streamed", default=4)

    def __post_init__(self) -> None:
        if self.stream and self.channels == 1:
            got = f"data.channels is {self.channels} and data.stream {self.stream}"
            raise KeyFiltersError(f"{got}; streamed images are in colour: set channels to 0")


@section
class Optimiser:
    """One of timm's optimisers."""

    name: Text = doc("as in timm.optim.list_optimizers()", default="adamw")
    lr: Positive = doc("learning rate after the warm-up", default=LR)
    base_lr: Number = doc("lr for 256 images, in place of lr; 0: none", default=0.0)
    weight_decay: Number = doc("of weights, not of biases and other vectors", default=0.05)
    layer_decay: Share = doc("factor of lr a layer, down from the head; 1: none", default=1.0, gt=0)
    clip: Number = doc("largest norm of the gradient; 0: no clipping", default=0.0)
    options: Table = doc("more arguments, such as betas", default_factory=dict)

    def __post_init__(self) -> None:
        if self.base_lr and self.lr != LR:
            got = f"optimiser.lr is {self.lr:g} and optimiser.base_lr is {self.base_lr:g}"
            raise KeyFiltersError(f"{got}; give one of them (base_lr=0 is none)")


@section
class Schedule:
    """How long to train: linear warm-up, then a cosine down to `min_lr` (timm's)."""

    epochs: Positive = doc("passes over the training images", default=10.0)
    steps: Whole = doc("optimiser steps, in place of epochs; 0: none", default=0)
    warmup_epochs: Number = doc("length of the warm-up in epochs", default=0.0)
    min_lr: Number = doc("learning rate at the end", default=0.0)
    select: Literal["best", "last"] = doc("the epoch whose weights to keep", default="best")


@section
class Batch:
    """How many images make a step."""

    size: Count = doc("images of a step, over all processes and parts", default=64)
    accumulation: Count = doc("parts in which a process computes its images", default=1)
    sync_batchnorm: Bool = doc("share batch statistics among processes (GPUs)", default=False)

    def __post_init__(self) -> None:
        if self.size % self.accumulation:
            got = f"batch.size {self.size} in {self.accumulation} parts"
            raise KeyFiltersError(f"{got}; a multiple of batch.accumulation is expected")


@section
class Augmentation:
    """What is done to training images; scale, policy and interpolation only to streamed ones."""

    crop: Whole = doc("black border in pixels, to cut images anew; 0: none", default=0)
    scale: Share = doc("smallest area of a random resized crop; 0: middle square", default=0.0)
    auto_augment: Text = doc("timm's policy, such as rand-m9-mstd0.5-inc1", default="")
    interpolation: Literal["bicubic", "bilinear", "random"] = doc("of resizing", default="bicubic")
    flip: Bool = doc("whether half of the images are mirrored", default=False)
    mixup: Number = doc("alpha of timm's Mixup; 0: none", default=0.0)
    cutmix: Number = doc("alpha of CutMix; with both, each batch draws one", default=0.0)
    erasing: Share = doc("probability of timm's RandomErasing (noise)", default=0.0)
    label_smoothing: Number = doc("share of the label for all classes", default=0.0, le=0.999)

    def __post_init__(self) -> None:
        if self.crop and self.scale:
            got = f"augmentation.crop is {self.crop} and augmentation.scale {self.scale:g}"
            raise KeyFiltersError(f"{got}; both cut at random: set one of them to 0")

    def changed(self) -> dict[str, Any]:
        """Return what differs from no augmentation."""
        plain = asdict(Augmentation())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


@section
class Ema:
    """A running mean of the weights (timm's ModelEmaV3)."""

    decay: Number = doc("weight of the past, as 0.9998; 0: no mean", default=0.0, le=0.999999)
    warmup: Bool = doc("whether the decay grows from 0", default=True)


@section
class Checkpoint:
    """What is written on the way; results do not depend on it."""

    steps: Count = doc("steps between two saved states", default=500)
    keep: tuple[Whole, ...] = doc("steps whose weights stay: step-N.safetensors", default=())
    log_with: tuple[Text, ...] = doc("trackers: tensorboard, wandb, …", default=())


@section
class Recipe:
    """Everything that a run depends on; a missing key has its default.

    Raises:
        KeyFiltersError: an unknown key, or a value of another type or out of range.

    >>> recipe = Recipe.from_dict({"optimiser": {"lr": 0.002}, "schedule": {"epochs": 3}})
    >>> recipe.optimiser.lr, recipe.steps(1438), recipe == Recipe.from_dict(recipe.to_dict())
    (0.002, 66, True)
    >>> Recipe.from_dict({"optimiser": {"rate": 0.002}})
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: 'rate' is no key of [optimiser]; known are name, lr, ...
    """

    seed: Whole = doc("draws weights, order, augmentation and dropout", default=0)
    precision: Literal["no", "fp16", "bf16"] = doc("no is float32", default="no")
    channels_last: Bool = doc("memory layout of images and weights", default=False)
    compile: Bool = doc("whether torch.compile translates the model", default=False)
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
        except (ValueError, RecursionError) as error:  # also a number of too many digits
            raise KeyFiltersError(f"{path} is no TOML file: {error}") from error
        for change in changes:
            _change(values, change)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe from nested tables, as a TOML file has them; raises as the class."""
        try:
            made: Self = TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            raise KeyFiltersError(_sentence(cls, error)) from error
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal recipe."""
        return asdict(self)

    def to_toml(self) -> str:
        """Return the text of a file that `load` reads as an equal recipe."""
        with needing("train", "writing a recipe"):
            import tomli_w

        return tomli_w.dumps(self.to_dict())

    @property
    def changes_model(self) -> bool:
        """Whether it asks for a change of the model that `train` does not make."""
        return False

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
        steps = ceil(round(self.schedule.epochs * per_epoch, 9))  # 0.07 · 100 is above 7
        return self.schedule.steps or max(1, steps)


def _change(values: dict[str, Any], change: str) -> None:
    """Apply a change such as ``section.key=value`` to nested tables."""
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key or len(sections) > 2:
        raise KeyFiltersError(f"{change!r} changes no recipe; type section.key=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        value = text.strip()  # a word needs no quotes
    for part in sections:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise KeyFiltersError(f"{change!r}: {part} is no section")
    values[key] = value


def _sentence(cls: type, error: ValidationError) -> str:
    """Say the first fault that pydantic found: what was got, and what is expected."""
    first, place = error.errors()[0], []
    for name in map(str, first["loc"]):
        known = [one.name for one in fields(cls)] if is_dataclass(cls) else []
        if name not in known:
            break
        place.append(name)
        cls = get_type_hints(cls)[name]
    got, context = first["input"], first.get("ctx", {})
    if first["type"] == "unexpected_keyword_argument":
        key = str(first["loc"][-1])
        where = f"[{place[-1]}]" if place else "the recipe"
        return f"{key!r} is no key of {where}; known are {', '.join(known)}{nearest(key, known)}"
    if "error" in context:
        return str(context["error"])
    expected = first["msg"].removeprefix("Input should be ") + " is expected"
    if first["type"] == "literal_error":
        words = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        expected = f"one of {', '.join(words)} is expected{nearest(str(got), words)}"
    return f"{'.'.join(place) or 'the recipe'} is {got!r}; {expected}"

"""What a run is made of: its recipe, its network, its images, and how it is measured."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from math import floor, inf, log2
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.query_strings import parse
from keyfilters.surgery import initialize_filters_
from keyfilters.training import READERS, Data, Recipe, accuracy, load_data, make_model, normalise

__all__ = [
    "build_network",
    "forget_data",
    "image_count",
    "is_data",
    "load",
    "measure",
    "recipe_of",
    "recipe_sections",
    "step_count",
    "watched",
]

OWN = "convmixer"  # the one network whose kernel size, width and depth can all be chosen
DATA_OPTIONS = ("samples", "classes", "root")
TEST_BATCH = 250


def recipe_of(options: Mapping[str, Any], seed: int, images: int) -> Recipe:
    """Return the recipe of a run on so many images.

    AdamW, with a cosine after one epoch of warm-up, or less in short runs: at most a quarter of the
    epochs, and half of a run of fewer steps. ``options["recipe"]`` (sections of a recipe) counts
    before these options, ``options["changes"]`` before both; but the last epoch is taken, as the
    images that are looked at on the way are test images, and the steps asked for are kept.

    Raises:
        KeyFiltersError: as `Recipe`.
    """
    changes = options.get("changes", {})
    epochs = changes.get("schedule", {}).get("epochs", options.get("epochs", 10))
    steps = changes.get("schedule", {}).get("steps", 0)
    share = steps * options.get("batch", 64) / images if steps and images else inf
    values: dict[str, Any] = {
        "optimiser": {
            "name": "adamw",
            "lr": options.get("lr", 0.01),
            "weight_decay": options.get("weight_decay", 0.05),
        },
        "schedule": {
            "epochs": epochs,
            "warmup_epochs": min(1.0, epochs / 4, share / 2),
            "select": "last",
        },
        "batch": {"size": options.get("batch", 64)},
        "checkpoint": {"steps": 1000, "keep": list(options.get("keep", ()))},
        "channels_last": True,  # on a CPU twice as fast
    }
    for given in (options.get("recipe", {}), changes):
        for name, section in given.items():
            both = isinstance(section, Mapping) and isinstance(values.get(name), Mapping)
            values[name] = {**values[name], **section} if both else section
    given = {**options.get("recipe", {}).get("optimiser", {}), **changes.get("optimiser", {})}
    if given.get("base_lr") and "lr" not in given:
        del values["optimiser"]["lr"]
    if "epochs" in changes.get("schedule", {}) and "steps" not in changes["schedule"]:
        values["schedule"]["steps"] = 0
    values["schedule"]["select"] = "last"
    values["checkpoint"]["keep"] = list(options.get("keep", ()))
    return Recipe.from_dict({**values, "seed": seed})


def recipe_sections(path: str) -> dict[str, Any]:
    """Return what a recipe file says of training, without its model and data.

    Raises:
        KeyFiltersError: as `Recipe.load`.
    """
    Recipe.load(path)  # refuses what is wrong
    given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return {k: x for k, x in given.items() if k not in ("seed", "model", "data", "filters")}


def build_network(options: Mapping[str, Any], data: Data, seed: int) -> nn.Module:
    """Build the untrained network; its first weights are a function of the seed.

    Args:
        options: network is ``"convmixer"`` (batch normalisation, one resolution; with width, depth
            and kernel size), or a timm model with its options, such as
            ``"convnext_atto?patch_size=2&dims=32,64,128,256"``, of which ConvNeXts take `size`; std
            of the first filters, drawn anew from a truncated normal distribution, unless 0.
        data: of its images and classes.
        seed: of the weights.

    Raises:
        KeyFiltersError: no such network, or one whose kernel size cannot be chosen.
    """
    name, own = parse(options.get("network", OWN))
    size = own.pop("size", options.get("size", 5))
    if name == OWN:
        width, depth = (own.pop(x, options.get(x, n)) for x, n in (("width", 32), ("depth", 4)))
        if own:
            raise KeyFiltersError(f"{OWN} has the options width, depth and size, not {list(own)}")
        own = _convmixer_options((width, depth, size), data)
    else:
        if name.startswith("convnext"):
            own.setdefault("kernel_sizes", size)
        elif size != 5:
            got = f"the kernel size of {name} cannot be chosen"
            raise KeyFiltersError(f"{got}; take {OWN} or a convnext")
    recipe = Recipe.from_dict({"seed": seed, "model": {"name": name, "options": own}})
    network = make_model(recipe, data)
    if std := options.get("std", 0):
        initialize_filters_(network, "trunc-normal", std=std, seed=seed)
    return network


def _convmixer_options(shape: tuple[int, int, int], data: Data) -> dict[str, Any]:
    if any(type(x) is not int or x < 1 for x in shape):
        raise KeyFiltersError(f"width, depth and size are {shape}; whole numbers above 0 expected")
    patch = 2 ** max(0, floor(log2(data.images.shape[2] / 8)))  # 8 to 15 places along a side
    return dict(zip(("dim", "depth", "kernel_size", "patch_size"), (*shape, patch), strict=True))


def load(options: Mapping[str, Any], seed: int) -> Data:
    """Load the data of a run; see `single_run`.

    Raises:
        KeyFiltersError: as `load_data`; an option that is none of samples, classes and root.
    """
    name, own = parse(options["data"])
    for option in own:
        if option not in DATA_OPTIONS:
            known = f"a data set has the options {', '.join(DATA_OPTIONS)}, not {option!r}"
            raise KeyFiltersError(f"{options['data']!r}: {known}{nearest(option, DATA_OPTIONS)}")
    if not isinstance(own.get("samples", 0), int):
        raise KeyFiltersError(f"{options['data']!r}: samples is no whole number")
    classes = own.pop("classes", [])
    own["classes"] = classes if isinstance(classes, list) else [classes]
    own |= {x: options.get(x, 0) for x in ("channels", "resolution")}
    if own.get("samples") or name == "photos":  # else nothing is drawn
        drawn = options.get("images_seed")
        own["seed"] = seed if drawn is None else drawn
    data = _loaded(name, json.dumps(own))
    return _spoiled(data, options.get("samples", 1), options.get("noise", 0), seed)


@lru_cache(maxsize=2)
def _loaded(name: str, options: str) -> Data:
    """Load data, and keep the last ones: every run of a grid asks for them before it starts."""
    return load_data(name, **json.loads(options))


def forget_data() -> None:
    """Forget the data that were loaded: their files may change."""
    _loaded.cache_clear()


def _spoiled(data: Data, samples: float, noise: float, seed: int) -> Data:
    """Leave a share of the training images, and give a share of these a random label."""
    if samples == 1 and noise == 0:
        return data
    generator = torch.Generator().manual_seed(seed)
    count = len(data.images)
    left = torch.randperm(count, generator=generator)[: max(1, round(samples * count))]
    images, labels = data.images[left], data.labels[left].clone()
    wrong = torch.randperm(len(left), generator=generator)[: round(noise * len(left))]
    labels[wrong] = torch.randint(len(data.classes), (len(wrong),), generator=generator)
    return replace(data, images=images, labels=labels)


def watched(data: Data, options: Mapping[str, Any]) -> Data:
    """Leave as many test images as are watched, the same ones for every seed."""
    some = torch.randperm(len(data.test_images), generator=torch.Generator().manual_seed(0))
    some = some[: options.get("watched", 1000)].sort().values
    return replace(data, test_images=data.test_images[some], test_labels=data.test_labels[some])


def measure(network: nn.Module, data: Data) -> dict[str, float]:
    """Return top1 (%) and loss (nats) of a network on the CPU over all test images."""
    batches = (
        (normalise(x, data.mean, data.std), y)
        for x, y in zip(
            data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH), strict=True
        )
    )
    found = accuracy(network, batches, topk=(1,))
    return {"top1": 100 * found["top1"], "loss": found["loss"]}


def is_data(source: str) -> bool:
    """Whether a source is a data set to train on, not filters to read."""
    return parse(source)[0].partition(":")[0] in READERS


def image_count(options: Mapping[str, Any]) -> int:
    """Return the number of training images of a run, of seed 0."""
    return len(load(options, 0).images)


def step_count(options: Mapping[str, Any]) -> int:
    """Return the number of optimiser steps of a run."""
    images = image_count(options)
    return recipe_of(options, 0, images).steps(images)

"""The optimiser of a recipe, and its learning rate at every step."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.layer_decay import layer_scales
from keyfilters.training.recipe import Optimiser, Recipe

__all__ = ["learning_rate", "make_optimiser"]


def make_optimiser(model: nn.Module, options: Optimiser) -> torch.optim.Optimizer:
    """Make one of timm's optimisers for the parameters that require a gradient.

    With a layer decay every group has an ``lr_scale``, as `layer_scales` says.

    Raises:
        KeyFiltersError: an unknown name or option, or no parameter to train.

    >>> frozen = nn.Linear(2, 2).requires_grad_(False)
    >>> optimiser = make_optimiser(nn.Sequential(frozen, nn.Linear(2, 3)), Optimiser())
    >>> [[tuple(x.shape) for x in group["params"]] for group in optimiser.param_groups]
    [[(3,)], [(3, 2)]]
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if options.name not in known:
        message = f"timm has no optimiser {options.name!r}{nearest(options.name, known)}"
        raise KeyFiltersError(f"{message}; set optimiser.name")
    free = [x for x in model.parameters() if x.requires_grad]
    if not free:
        raise KeyFiltersError("no parameter of the model requires a gradient: nothing to train")
    layers = {"layer_decay": options.layer_decay} if options.layer_decay < 1 else {}
    grouped: Any = model if layers or options.weight_decay else free
    try:
        optimiser = create_optimizer_v2(
            grouped,
            options.name,
            lr=options.lr,
            weight_decay=options.weight_decay,
            **layers,
            **options.options,
        )
    except (TypeError, ValueError) as error:
        message = f"{options.name} does not take optimiser.options {options.options}: {error}"
        raise KeyFiltersError(message) from error
    if layers:  # timm's groups hold parameters of one layer each, so one scale fits all of a group
        scales = layer_scales(model, options.layer_decay)
        own = {id(x): scales.get(name, 1.0) for name, x in model.named_parameters()}
        for group in optimiser.param_groups:
            group["lr_scale"] = own[id(group["params"][0])]
    return optimiser


def learning_rate(recipe: Recipe, step: int, per_epoch: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine.

    Args:
        recipe: its `peak_lr` and its schedule.
        step: from 0 on.
        per_epoch: steps of an epoch.
        steps: of the whole run.

    >>> recipe = Recipe.from_dict({"optimiser": {"lr": 1.0}, "schedule": {"warmup_epochs": 0.5}})
    >>> [round(learning_rate(recipe, step, 4, 8), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    top, low = recipe.peak_lr, recipe.schedule.min_lr
    warmup = min(round(recipe.schedule.warmup_epochs * per_epoch), steps)
    if step < warmup:
        return top * (step + 1) / warmup
    return low + (top - low) * 0.5 * (1 + cos(pi * (step - warmup) / (steps - warmup)))

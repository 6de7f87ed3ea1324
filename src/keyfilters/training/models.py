"""The model of a recipe and its optimiser, both timm's, and whether a model fits the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.network import OFFLINE
from keyfilters.passes import evaluating
from keyfilters.pretrained import create_timm
from keyfilters.training.data import Data
from keyfilters.training.recipe import Recipe

__all__ = [
    "WEIGHTS",
    "create_network",
    "decay_layers",
    "make_model",
    "make_optimiser",
    "make_schedule",
    "try_model",
]

CONVMIXER = "convmixer"
WEIGHTS = frozenset(("pretrained", "checkpoint_path"))  # timm's options that read some


def make_model(recipe: Recipe, data: Data) -> nn.Module:
    """Make the recipe's timm model for the classes and channels of the data, by the seed.

    ``"convmixer"`` is timm's ConvMixer of any shape (options dim, depth, kernel_size, patch_size),
    since timm's own names fix it. A file of first weights is named in the options of the others:
    ``{pretrained = true, pretrained_cfg_overlay = {file = "PATH"}}``. The head starts anew where
    the file has none or other classes.

    Raises:
        KeyFiltersError: timm has no such model, it does not take the options, or its pretrained
            weights cannot be had or are those of another network.

    >>> from keyfilters.training import load_data
    >>> recipe = Recipe.from_dict({"model": {"name": "test_convnext"}})
    >>> make_model(recipe, load_data("digits", classes=[0, 1])).num_classes
    2
    """
    name, options = recipe.model.name, recipe.model.options
    sizes = len(data.classes), data.images.shape[1]
    try:
        model = create_network(recipe, *sizes)
    except OSError as error:  # of a file, or of the hub
        reason = str(error) or "there is no such file"
        named = 'name a file by model.options.pretrained_cfg_overlay={file = "PATH"}'
        mend = f"{OFFLINE}: {named}" if isinstance(error, ConnectionError) else named
        message = f"the pretrained weights of {name} cannot be had: {reason}"
        raise KeyFiltersError(f"{message}; {mend}") from error
    if options.get("pretrained"):
        _require_read(model, create_network(recipe, *sizes, pretrained=False), name)
    return model


def create_network(
    recipe: Recipe, classes: int, channels: int, *, pretrained: bool = True
) -> nn.Module:
    """Make the recipe's model, by the seed.

    Args:
        recipe: of the model, its options and the seed.
        classes: number of logits.
        channels: of the images.
        pretrained: whether options of the recipe that name trained weights count.

    Raises:
        KeyFiltersError: timm has no such model, or it does not take the options.
        OSError: its pretrained weights cannot be had.
    """
    import timm
    from timm.models.convmixer import ConvMixer

    name, options = recipe.model.name, recipe.model.options
    if name != CONVMIXER and not timm.is_model(name):
        message = f"timm has no model {name!r}{nearest(name, timm.list_models())}"
        raise KeyFiltersError(f"{message}; set model.name")
    sizes = {"num_classes": classes, "in_chans": channels}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if name == CONVMIXER:
                return ConvMixer(**{**sizes, **options})
            kept = {x: y for x, y in options.items() if pretrained or x not in WEIGHTS}
            return create_timm(name, **{**sizes, **kept})
    except (TypeError, RuntimeError, ValueError, LookupError, AssertionError, AttributeError,
            ArithmeticError) as error:  # fmt: skip
        reason = " ".join(str(error).split("\n\t")[:2])  # torch names every mismatch of a file
        message = f"{name} does not take model.options {options}: {reason}"
        raise KeyFiltersError(message) from error


def _require_read(model: nn.Module, untrained: nn.Module, name: str) -> None:
    """Refuse pretrained weights that leave more than the head as it was drawn.

    Where the classes differ, timm takes what a file has and does not say what it lacks.
    """
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    drawn = dict(untrained.named_parameters())
    missing = [
        key
        for key, x in model.named_parameters()
        if x.ndim > 1 and x.any() and torch.equal(x, drawn[key]) and not key.startswith(heads)
    ]
    if missing:
        message = f"the pretrained weights have no {missing[0]} of {name}"
        more = f" and lack {len(missing) - 1} more of its weights" if len(missing) > 1 else ""
        raise KeyFiltersError(f"{message}{more}; name a file of the same architecture")


def try_model(model: nn.Module, images: Tensor, classes: int) -> None:
    """Show a model a few images, to refuse one that does not fit before any work.

    Args:
        model: in any mode, which it keeps.
        images: ``(n, c, h, w)``, normalised, on its device.
        classes: number of logits that it must give.

    Raises:
        KeyFiltersError: it does not take the images, or gives something else.

    >>> try_model(nn.Flatten(), torch.zeros(2, 1, 8, 8), 10)
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: the model gives (64,) for an image; 10 logits are expected
    """
    shape = tuple(images.shape[1:])
    try:
        with evaluating(model), torch.no_grad():
            z = model(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        message = f"the model cannot take images of {shape}: {error}"
        mend = "set data.resolution, data.channels or model.options"
        raise KeyFiltersError(f"{message}; {mend}") from error
    if not isinstance(z, Tensor) or z.shape != (len(images), classes):
        got = tuple(z.shape[1:]) if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise KeyFiltersError(f"the model gives {got} for an image; {classes} logits are expected")


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make one of timm's optimisers for the parameters that require a gradient.

    Raises:
        KeyFiltersError: an unknown name or option, or no parameter to train.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    options, known = recipe.optimiser, list_optimizers()
    if options.name not in known:
        message = f"timm has no optimiser {options.name!r}{nearest(options.name, known)}"
        raise KeyFiltersError(f"{message}; set optimiser.name")
    if options.name == "adahessian":
        raise KeyFiltersError("adahessian needs gradients of gradients; set another optimiser.name")
    free = [x for x in model.parameters() if x.requires_grad]
    if not free:
        raise KeyFiltersError("no parameter of the model requires a gradient: nothing to train")
    decay = options.layer_decay if options.layer_decay < 1 else None
    grouped: Any = model if decay or options.weight_decay else free
    try:
        made = create_optimizer_v2(
            grouped,
            options.name,
            lr=recipe.peak_lr,
            weight_decay=options.weight_decay,
            layer_decay=decay,
            **options.options,
        )
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as error:
        message = f"{options.name} does not take optimiser.options {options.options}: {error}"
        raise KeyFiltersError(message) from error
    if decay:
        least = decay ** decay_layers(model)
        for group in made.param_groups:
            group["lr_scale"] = max(group["lr_scale"], least)
    return made


def make_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, per_epoch: int, steps: int
) -> Any:
    """Make timm's schedule: linear warm-up to the largest learning rate, then half a cosine.

    >>> recipe = Recipe.from_dict({"optimiser": {"lr": 1.0}, "schedule": {"warmup_epochs": 0.5}})
    >>> optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = make_schedule(optimiser, recipe, 4, 6)
    >>> [(schedule.step_update(i), round(optimiser.param_groups[0]["lr"], 3))[1] for i in range(6)]
    [0.5, 1.0, 0.905, 0.655, 0.345, 0.095]
    """
    from timm.scheduler import CosineLRScheduler

    warmup = min(round(recipe.schedule.warmup_epochs * per_epoch), steps)
    rising = max(warmup - 1, 0)  # steps below the largest rate, where the cosine starts
    return CosineLRScheduler(
        optimiser,
        max(steps - rising, 2),  # timm warns of 1
        lr_min=recipe.schedule.min_lr,
        warmup_t=rising,
        warmup_lr_init=recipe.peak_lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def decay_layers(model: nn.Module) -> int:
    """Return the number of layers before the head, over which learning rates decay.

    Layers are those of timm, but that ConvNeXt's stem goes with its first block, as its authors
    have it; frozen parameters count.

    >>> import timm
    >>> decay_layers(timm.create_model("convnextv2_atto"))  # 2 + 2 + 6 + 2 blocks
    12
    """
    from timm.models import group_parameters
    from timm.models.convnext import ConvNeXt
    from timm.optim import auto_group_layers

    matching: Any = getattr(model, "group_matcher", None)
    if matching is None:
        return max(auto_group_layers(model).values(), default=0)
    numbers = group_parameters(model, matching(coarse=False), reverse=True)
    return max(numbers.values(), default=0) - isinstance(model, ConvNeXt)

"""What a recipe will do, in words, before it is done."""

from __future__ import annotations

from torch import nn

from keyfilters.training.batches import share_of
from keyfilters.training.data import Data
from keyfilters.training.models import decay_layers
from keyfilters.training.recipe import Recipe

__all__ = ["plan"]


def plan(recipe: Recipe, model: nn.Module, data: Data, processes: int = 1) -> dict[str, str]:
    """Say what will run.

    Args:
        recipe: what to do.
        model: that is to be trained, as it will be.
        data: to train with, to validate and to test on.
        processes: how many will share each batch.

    Returns:
        A few words by subject: model, data, batch, learning rate, schedule, layer decay,
        optimiser, augmentation, running mean and precision.

    Raises:
        KeyFiltersError: a batch that cannot be shared out so, or is larger than the data.

    >>> from keyfilters.training import load_data
    >>> recipe = Recipe.from_dict({"optimiser": {"base_lr": 0.001}, "batch": {"size": 128}})
    >>> facts = plan(recipe, nn.Linear(64, 10), load_data("digits"), processes=2)
    >>> print(facts["batch"], facts["learning rate"], facts["schedule"], sep="; ")
    128 = 2 processes × 1 part × 64 images; 0.0005 = 0.001 × 128 / 256; 10 epochs = 110 steps, ...
    """
    images, size, parts = len(data.labels), recipe.batch.size, recipe.batch.accumulation
    share = share_of(recipe, images, processes)
    total = sum(x.numel() for x in model.parameters())
    free = sum(x.numel() for x in model.parameters() if x.requires_grad)
    held = {part: f"{len(labels):,}" for part, (_, labels) in data.parts().items()}
    validated = f", {held['validation']} to validate on" if "validation" in held else ""
    own, base, ema = recipe.optimiser, recipe.optimiser.base_lr, recipe.ema
    options = "".join(f", {key} {value}" for key, value in own.options.items())
    clip = f"; gradients clipped at {own.clip:g}" if own.clip else ""
    mean = f"of the weights, decay {ema.decay:g}, {'with' if ema.warmup else 'without'} warm-up"
    shares = f"{processes} process{'es' * (processes > 1)} × {parts} part{'s' * (parts > 1)}"
    return {
        "model": f"{recipe.model.name}: {free:,} of {total:,} parameters learn",
        "data": f"{data.name}: {images:,} images of {'×'.join(map(str, data.images.shape[1:]))} "
        f"in {len(data.classes):,} classes{validated}, {held['test']} to test on",
        "batch": f"{size} = {shares} × {share} images",
        "learning rate": f"{recipe.peak_lr:g}" + f" = {base:g} × {size} / 256" * (base > 0),
        "schedule": _schedule(recipe, images),
        "layer decay": _layers(own.layer_decay, model),
        "optimiser": f"{own.name}{options}, weight decay {own.weight_decay:g}, none on vectors"
        f"{clip}",
        "augmentation": ", ".join(f"{x} {y}" for x, y in recipe.augmentation.changed().items())
        or "none",
        "running mean": mean if ema.decay else "none",
        "precision": "float32" if recipe.precision == "no" else recipe.precision,
    }


def _schedule(recipe: Recipe, images: int) -> str:
    schedule, steps = recipe.schedule, recipe.steps(images)
    length = f"{schedule.epochs:g} epochs = {steps:,} steps"
    if schedule.steps:
        length = f"{steps:,} steps, in place of {schedule.epochs:g} epochs"
    warmup = "no warm-up"
    if schedule.warmup_epochs:
        rising = round(schedule.warmup_epochs * (images // recipe.batch.size))
        warmup = f"{schedule.warmup_epochs:g} epochs of warm-up ({rising:,} steps)"
    return f"{length}, {warmup}, then a cosine down to {schedule.min_lr:g}"


def _layers(decay: float, model: nn.Module) -> str:
    if decay == 1:
        return "none"
    below = decay_layers(model)
    first = f"{decay:g}^{below} = {decay**below:.4g} for the first"
    return f"{decay:g} over {below} layers before the head: {first}, 1 for the head"

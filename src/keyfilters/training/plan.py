"""What a recipe will do, in words, before it is done."""

from __future__ import annotations

from dataclasses import fields

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
    images, optimiser, schedule, ema = (
        len(data.labels),
        recipe.optimiser,
        recipe.schedule,
        recipe.ema,
    )
    share, size, parts = (
        share_of(recipe, images, processes),
        recipe.batch.size,
        recipe.batch.accumulation,
    )
    counts = [(x.numel(), x.requires_grad) for x in model.parameters()]
    free, base, steps = (
        sum(n for n, trained in counts if trained),
        optimiser.base_lr,
        recipe.steps(images),
    )
    length = f"{schedule.epochs:g} epochs = {steps:,} steps"
    if schedule.steps:
        length = f"{steps:,} steps, in place of {schedule.epochs:g} epochs"
    warmup = "no warm-up"
    if schedule.warmup_epochs:
        rising = round(schedule.warmup_epochs * (images // size))
        warmup = f"{schedule.warmup_epochs:g} epochs of warm-up ({rising:,} steps)"
    layers = "none"
    if (decay := optimiser.layer_decay) < 1:
        below = decay_layers(model)
        least = f"{decay:g}^{below} = {decay**below:.4g} for the first"
        layers = f"{decay:g} over {below} layers before the head: {least}, 1 for the head"
    options = "".join(f", {key} {value}" for key, value in optimiser.options.items())
    clip = f"; gradients clipped at {optimiser.clip:g}" if optimiser.clip else ""
    change = recipe.augmentation
    changed = [(x.name, getattr(change, x.name)) for x in fields(change)]
    changed = [(name, value) for name, value in changed if value != getattr(type(change), name)]
    held = "".join(
        f", {len(x):,} to validate on" for p, (_, x) in data.parts().items() if p == "validation"
    )
    mean = f"of the weights, decay {ema.decay:g}, {'with' if ema.warmup else 'without'} warm-up"
    return {
        "model": f"{recipe.model.name}: {free:,} of {sum(n for n, _ in counts):,} parameters learn",
        "data": f"{data.name}: {images:,} images of {'×'.join(map(str, data.images.shape[1:]))} in "
        f"{len(data.classes):,} classes{held}, {len(data.test_labels):,} to test on",
        "batch": f"{size} = {processes} process{'es' * (processes > 1)} × {parts} part"
        f"{'s' * (parts > 1)} × {share} images",
        "learning rate": f"{recipe.peak_lr:g}" + f" = {base:g} × {size} / 256" * (base > 0),
        "schedule": f"{length}, {warmup}, then a cosine down to {schedule.min_lr:g}",
        "layer decay": layers,
        "optimiser": f"{optimiser.name}{options}, weight decay {optimiser.weight_decay:g}, none on "
        f"vectors{clip}",
        "augmentation": ", ".join(f"{name} {value}" for name, value in changed) or "none",
        "running mean": mean if ema.decay else "none",
        "precision": {"no": "float32"}.get(recipe.precision, recipe.precision),
    }

"""What a recipe will do, in words, before it is done."""

from __future__ import annotations

from dataclasses import fields

from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training.labelled import Data
from keyfilters.training.layer_decay import layer_numbers
from keyfilters.training.recipe import Recipe

__all__ = ["plan"]


def plan(recipe: Recipe, model: nn.Module, data: Data, processes: int = 1) -> dict[str, str]:
    """Say what will run.

    Args:
        recipe: what to do.
        model: that is to be trained, as it will be.
        data: to train with and to test on.
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
    images, tests = len(data.labels), len(data.test_labels)
    side = "×".join(map(str, data.images.shape[1:]))
    counts = [(x.numel(), x.requires_grad) for x in model.parameters()]
    free = sum(count for count, trained in counts if trained)
    optimiser = recipe.optimiser
    options = "".join(f", {key} {value}" for key, value in optimiser.options.items())
    clip = f"; gradients clipped at {optimiser.clip:g}" if optimiser.clip else ""
    return {
        "model": f"{recipe.model.name}: {free:,} of {sum(n for n, _ in counts):,} parameters learn",
        "data": f"{data.name}: {images:,} images of {side} in {len(data.classes):,} classes, "
        f"{tests:,} to test on",
        "batch": _batch(recipe, images, processes),
        "learning rate": _rate(recipe),
        "schedule": _schedule(recipe, images),
        "layer decay": _layers(recipe, model),
        "optimiser": f"{optimiser.name}{options}, weight decay {optimiser.weight_decay:g}, none on "
        f"vectors{clip}",
        "augmentation": _augmentation(recipe),
        "running mean": _mean(recipe),
        "precision": {"no": "float32"}.get(recipe.precision, recipe.precision),
    }


def _batch(recipe: Recipe, images: int, processes: int) -> str:
    size, parts = recipe.batch.size, recipe.batch.accumulation
    if size % (parts * processes):
        got = f"batch.size {size} for {processes} processes of {parts} parts each"
        raise KeyFiltersError(f"{got}; a multiple of {parts * processes} is expected")
    if size > images:
        got = f"batch.size is {size}, more than the {images} training images"
        raise KeyFiltersError(f"{got}; set a smaller batch.size")
    shares = ((processes, "process", "es"), (parts, "part", "s"))
    words = " × ".join(f"{count} {word}{tail * (count > 1)}" for count, word, tail in shares)
    return f"{size} = {words} × {size // (parts * processes)} images"


def _rate(recipe: Recipe) -> str:
    base = recipe.optimiser.base_lr
    return f"{recipe.peak_lr:g}" + f" = {base:g} × {recipe.batch.size} / 256" * (base > 0)


def _schedule(recipe: Recipe, images: int) -> str:
    schedule, per_epoch = recipe.schedule, images // recipe.batch.size
    steps = recipe.steps(images)
    length = f"{schedule.epochs:g} epochs = {steps:,} steps"
    if schedule.steps:
        length = f"{steps:,} steps, in place of {schedule.epochs:g} epochs"
    warmup = f"{schedule.warmup_epochs:g} epochs of warm-up" if schedule.warmup_epochs else ""
    warmup += f" ({round(schedule.warmup_epochs * per_epoch):,} steps)" * bool(warmup)
    return f"{length}, {warmup or 'no warm-up'}, then a cosine down to {schedule.min_lr:g}"


def _layers(recipe: Recipe, model: nn.Module) -> str:
    decay = recipe.optimiser.layer_decay
    if decay == 1:
        return "none"
    last = max(layer_numbers(model).values(), default=0)
    first = f"{decay:g}^{last} = {decay**last:.4g} for the first"
    return f"{decay:g} over {last} layers before the head: {first}, 1 for the head"


def _augmentation(recipe: Recipe) -> str:
    own = recipe.augmentation
    changed = [one.name for one in fields(own) if getattr(own, one.name) != one.default]
    return ", ".join(f"{name} {getattr(own, name)}" for name in changed) or "none"


def _mean(recipe: Recipe) -> str:
    if not recipe.ema.decay:
        return "none"
    warmup = "with" if recipe.ema.warmup else "without"
    return f"of the weights, decay {recipe.ema.decay:g}, {warmup} warm-up"

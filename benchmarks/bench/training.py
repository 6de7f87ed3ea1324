"""What training costs beside a bare loop: by a recipe, with filters kept on keys, and watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional

import keyfilters as kf
from keyfilters.training import Data, Recipe, load_data, make_model, train
from keyfilters.training.models import try_model

from .runner import Arm, Comparison

LOOP = "a bare loop"
PLAIN = "the plain model"
LEARN = (("bias",), ("amplitude", "bias"), ("amplitude", "bias", "sigma"))
EVERY = 100
STEP = "one training step"

# Name, options, data, batch and steps of a round.
RUNS = {
    "test_convnext, digits 8×8": ("test_convnext", {"patch_size": 1}, "digits", {}, 64, 60),
    "convnextv2_atto, digits 32×32": (
        "convnextv2_atto", {}, "digits", {"resolution": 32}, 64, 12
    ),
}  # fmt: skip


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield recipes, filters on keys, baked models, and the monitor."""
    for name, (model, options, data, shape, size, steps) in RUNS.items():
        some = max(3, round(steps * scale))
        yield _recipe(name, model, options, load_data(data, **shape), size, some)
    yield from _on_keys(32 if scale == 1 else 4)
    yield _monitor(16 if scale == 1 else 2)


def _recipe(
    name: str, model: str, options: dict[str, object], data: Data, size: int, steps: int
) -> Comparison:
    recipe = Recipe.from_dict(
        {
            "model": {"name": model, "options": options},
            "batch": {"size": size},
            "schedule": {"steps": steps},
        }
    )

    def ours() -> float:
        return float(train(recipe, data=data, device="cpu").summary["seconds"])

    arms = (
        Arm(way, run, steps, tells_seconds=True)
        for way, run in (("train, by a recipe", ours), (LOOP, lambda: by_hand(recipe, data)))
    )
    first, bare = arms
    return Comparison("training", name, "step", first, (bare,), {LOOP: 1 / 0.97}, seconds=25)


def by_hand(recipe: Recipe, data: Data) -> float:
    """Train as one would write it: index, normalise, forward, backward, AdamW; return seconds."""
    model = make_model(recipe, data).train()
    optimiser = torch.optim.AdamW(param_groups_weight_decay(model, 0.05), lr=1e-3)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.mean, data.std))
    size, order = recipe.batch.size, torch.randperm(len(data.images))
    try_model(model, (data.images[:2].float() / 255 - mean) / std, len(data.classes))
    started = time.perf_counter()
    for step in range(recipe.schedule.steps):
        chosen = order[step % (len(order) // size) * size :][:size]
        x = (data.images[chosen].float() / 255 - mean) / std
        loss = functional.cross_entropy(model(x), data.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - started


def atto(learn: tuple[str, ...] | None = None, *, bake: bool = False) -> nn.Module:
    """Return an untrained ConvNeXt V2 atto, its filters kept on keys where `learn` is given."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("convnextv2_atto", pretrained=False, num_classes=10)
    if learn is not None:
        kf.parametrize_filters_(model, kf.KeySet.published("lindeberg2026-B"), learn)
    if bake:
        kf.bake_filters_(model)
    return model


def step_of(model: nn.Module, batch: int, side: int) -> Callable[[], None]:
    """Return one training step of a model on random images."""
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch) % 10
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def _on_keys(batch: int) -> Iterator[Comparison]:
    side = 64
    work = f"ConvNeXt V2 atto, {batch} images of {side}×{side}"
    models = {f"on keys, learn {', '.join(learn)}": (atto(learn), 1.05) for learn in LEARN}
    models["baked"] = atto(LEARN[-1], bake=True), None
    models["the plain model again"] = atto(), None  # what noise alone gives
    for name, (model, limit) in models.items():
        ours, plain = (Arm(n, step_of(m, batch, side)) for n, m in ((name, model), (PLAIN, atto())))
        limits = {} if limit is None else {PLAIN: limit}
        yield Comparison("training", work, "step", ours, (plain,), limits, rounds=15, seconds=20)


def _monitor(batch: int) -> Comparison:
    """Compare a measurement, of which there is one in a hundred steps, with a step."""
    model = atto()
    watch = kf.Monitor(model, every=EVERY)
    ours = Arm(
        f"kf.Monitor, every={EVERY}", lambda: _forget(watch.measure(len(watch.history))), EVERY
    )
    work = f"ConvNeXt V2 atto, {batch} images of 224×224"
    step = Arm(STEP, step_of(model, batch, 224))
    return Comparison("monitor", work, "step", ours, (step,), {STEP: 0.02}, rounds=5)


def _forget(_: object) -> None:
    """Drop a result."""

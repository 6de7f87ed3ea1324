"""Optimisers, learning rates and groups of layers, against the published ones of ConvNeXt V2."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery import parametrize_filters_
from keyfilters.training import Recipe
from keyfilters.training.models import decay_layers, make_optimiser, make_schedule

# Of 3 + 3 + 9 + 3 blocks: id 1 to 18, a stem or downsampling layer as the block behind it, all else
# 19; the scale is decay^(19 - id).
PUBLISHED = {
    "stem": 1,
    **{f"stages.0.blocks.{i}": 1 + i for i in range(3)},
    "stages.1.downsample": 4,
    **{f"stages.1.blocks.{i}": 4 + i for i in range(3)},
    "stages.2.downsample": 7,
    **{f"stages.2.blocks.{i}": 7 + i for i in range(9)},
    "stages.3.downsample": 16,
    **{f"stages.3.blocks.{i}": 16 + i for i in range(3)},
    "head": 19,
}


def made(**options: Any) -> Recipe:
    return Recipe.from_dict({"optimiser": options})


def published(name: str) -> int:
    (number,) = (i for part, i in PUBLISHED.items() if name.startswith(f"{part}."))
    return number


@pytest.mark.parametrize("learn", [None, (), ("bias",), ("amplitude", "sigma")])
@pytest.mark.parametrize("frozen", [(), ("stem",), ("stages.1",)])
def test_layers_decay_as_published(learn: tuple[str, ...] | None, frozen: tuple[str, ...]) -> None:
    model = timm.create_model("convnextv2_tiny", dims=[8, 8, 8, 8], num_classes=3)
    if learn is not None:
        parametrize_filters_(model, KeySet.published("lindeberg2026-B"), learn)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    groups = make_optimiser(model, made(layer_decay=0.9)).param_groups
    names = {id(x): name for name, x in model.named_parameters() if x.requires_grad}
    seen = {}
    for group in groups:
        for x in group["params"]:
            seen[names[id(x)]] = group["lr_scale"]
            assert group["weight_decay"] == (0.05 if x.ndim > 1 else 0)
    assert seen == {name: pytest.approx(0.9 ** (19 - published(name))) for name in names.values()}
    assert decay_layers(model) == 18


def test_other_models_keep_timms_grouping() -> None:
    model = timm.create_model("test_vit")
    groups = make_optimiser(model, made(layer_decay=0.5)).param_groups
    names = {id(x): name for name, x in model.named_parameters()}
    scales = {names[id(x)]: group["lr_scale"] for group in groups for x in group["params"]}
    assert scales["head.weight"] == 1 and scales["blocks.0.norm1.weight"] == 2**-6
    assert scales["patch_embed.proj.weight"] == 2**-7, "an embedding is a layer of its own"


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.0}, {"layer_decay": 0.5}])
def test_frozen_parameters_are_left_out(options: dict[str, Any]) -> None:
    model = timm.create_model("test_convnext")
    model.stem.requires_grad_(False)
    optimiser = make_optimiser(model, made(**options))
    given = {id(x) for group in optimiser.param_groups for x in group["params"]}
    assert given == {id(x) for x in model.parameters() if x.requires_grad}
    decay = {x.ndim: g["weight_decay"] for g in optimiser.param_groups for x in g["params"]}
    assert decay[1] == 0 and decay[4] == options.get("weight_decay", 0.05)


def test_optimisers_that_cannot_be() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(KeyFiltersError, match=r"no optimiser 'adamv'.*adamw"):
        make_optimiser(model, made(name="adamv"))
    with pytest.raises(KeyFiltersError, match=r"adamw does not take .*'beta'"):
        make_optimiser(model, made(options={"beta": 1}))
    with pytest.raises(KeyFiltersError, match="nothing to train"):
        make_optimiser(model.requires_grad_(False), made())
    with pytest.raises(KeyFiltersError, match="adahessian needs gradients of gradients"):
        make_optimiser(nn.Linear(2, 2), made(name="adahessian"))
    if not torch.cuda.is_available():
        with pytest.raises(KeyFiltersError, match="fusedadam does not take"):
            make_optimiser(nn.Linear(2, 2), made(name="fusedadam"))


def test_the_schedule_warms_up_once_and_ends_at_its_least() -> None:
    recipe = Recipe.from_dict(
        {"optimiser": {"lr": 0.2}, "schedule": {"warmup_epochs": 2, "min_lr": 0.01}}
    )

    def rates(per_epoch: int, steps: int) -> list[float]:
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        schedule, found = make_schedule(optimiser, recipe, per_epoch, steps), []
        for step in range(steps):
            schedule.step_update(step)
            found.append(optimiser.param_groups[0]["lr"])
        return found

    found = rates(10, 100)
    assert found[:2] == pytest.approx([0.01, 0.02]) and found[19] == pytest.approx(0.2)
    assert found[19:] == sorted(found[19:], reverse=True) and 0.01 < found[-1] < 0.0102
    assert rates(10, 5)[4] == pytest.approx(0.2)  # shorter than its warm-up
    assert rates(10, 1) == pytest.approx([0.2])

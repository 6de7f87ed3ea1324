from __future__ import annotations

from typing import Any

import pytest
import timm
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe
from keyfilters.training.optimise import learning_rate, make_optimiser


def made(**options: Any) -> Recipe:
    return Recipe.from_dict({"optimiser": options})


def test_layer_decay_scales_from_the_head_down() -> None:
    model = timm.create_model("test_convnext")
    optimiser = make_optimiser(model, made(layer_decay=0.5).optimiser)
    names = {id(x): name for name, x in model.named_parameters()}
    scale = {
        names[id(x)]: group["lr_scale"] for group in optimiser.param_groups for x in group["params"]
    }
    assert scale["head.fc.weight"] == 1 and scale["stem.0.weight"] == min(scale.values()) < 0.1
    assert set(scale) == set(names.values())


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.0}, {"layer_decay": 0.5}])
def test_frozen_parameters_are_left_out(options: dict[str, Any]) -> None:
    model = timm.create_model("test_convnext")
    model.stem.requires_grad_(False)
    optimiser = make_optimiser(model, made(**options).optimiser)
    given = {id(x) for group in optimiser.param_groups for x in group["params"]}
    assert given == {id(x) for x in model.parameters() if x.requires_grad}
    decay = {x.ndim: g["weight_decay"] for g in optimiser.param_groups for x in g["params"]}
    assert decay[1] == 0 and decay[4] == options.get("weight_decay", 0.05)


def test_optimisers_that_cannot_be() -> None:
    model = nn.Linear(2, 2)
    message = "no optimiser 'adamv'; the nearest names are: .*adamw.*set optimiser.name"
    with pytest.raises(KeyFiltersError, match=message):
        make_optimiser(model, made(name="adamv").optimiser)
    with pytest.raises(KeyFiltersError, match=r"adamw does not take .*'beta'"):
        make_optimiser(model, made(options={"beta": 1}).optimiser)
    with pytest.raises(KeyFiltersError, match="nothing to train"):
        make_optimiser(model.requires_grad_(False), made().optimiser)


def test_the_schedule_warms_up_once_and_ends_at_its_least() -> None:
    recipe = Recipe.from_dict(
        {"optimiser": {"lr": 0.2}, "schedule": {"warmup_epochs": 2, "min_lr": 0.01}}
    )
    rates = [learning_rate(recipe, step, 10, 100) for step in range(100)]
    assert rates[:2] == pytest.approx([0.01, 0.02]) and rates[19] == rates[20] == 0.2
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[60] == pytest.approx(0.105)
    assert 0.01 < rates[-1] < 0.0102
    assert learning_rate(recipe, 4, 10, 5) == 0.2  # shorter than its warm-up

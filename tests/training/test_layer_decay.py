"""The grouping of layers against the published one of ConvNeXt V2's fine-tuning, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
from torch import nn

from keyfilters.keyset import KeySet
from keyfilters.surgery import freeze_filters_, parametrize_filters_
from keyfilters.training import Recipe
from keyfilters.training.layer_decay import layer_scales
from keyfilters.training.optimise import make_optimiser

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
SMALL: dict[str, Any] = {"dims": [8, 8, 8, 8], "num_classes": 3}


def published(name: str) -> int:
    (number,) = (i for part, i in PUBLISHED.items() if name.startswith(f"{part}."))
    return number


@pytest.fixture
def model() -> nn.Module:
    return timm.create_model("convnextv2_tiny", **SMALL)


def test_scales_are_the_published_ones(model: nn.Module) -> None:
    scales = layer_scales(model, 0.9)
    assert scales.keys() == dict(model.named_parameters()).keys()
    assert scales == {name: pytest.approx(0.9 ** (19 - published(name))) for name in scales}
    assert scales["stem.0.weight"] == scales["stages.0.blocks.0.norm.bias"] == 0.9**18


@pytest.mark.parametrize("learn", [(), ("bias",), ("amplitude", "sigma")])
def test_weights_on_keys_go_with_their_block(model: nn.Module, learn: tuple[str, ...]) -> None:
    parametrize_filters_(model, KeySet.published("lindeberg2026-B"), learn)
    model.stages[1].requires_grad_(False)
    options = Recipe.from_dict({"optimiser": {"layer_decay": 0.9}}).optimiser
    groups = make_optimiser(model, options).param_groups
    names = {id(x): name for name, x in model.named_parameters() if x.requires_grad}
    seen = {}
    for group in groups:
        for x in group["params"]:
            name = names[id(x)]  # no frozen one
            seen[name] = group["lr_scale"]
            assert group["weight_decay"] == (0.05 if x.ndim > 1 else 0), name
    assert seen == {n: pytest.approx(0.9 ** (19 - published(n))) for n in names.values()}
    own = [name for name in seen if "parametrizations" in name]
    assert len(own) == 15 * len(learn)


def test_frozen_filters_change_no_other_scale(model: nn.Module) -> None:
    before = layer_scales(model, 0.5)
    freeze_filters_(model)
    assert layer_scales(model, 0.5) == before


def test_other_models_keep_timms_grouping() -> None:
    scales = layer_scales(timm.create_model("test_vit"), 0.5)
    assert scales["head.weight"] == 1 and scales["blocks.0.norm1.weight"] == 2**-6
    assert scales["patch_embed.proj.weight"] == 2**-7, "an embedding is a layer of its own"
    plain = layer_scales(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.5)
    assert set(plain.values()) == {1}

"""Models of recipes that start from a file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, load_data, make_model

WIDE = {"dims": [8, 8, 8, 8]}


@pytest.fixture
def data() -> Data:
    return load_data("digits", classes=[0, 1, 2], channels=3)


def from_file(path: Path, name: str = "convnextv2_atto.fcmae", **options: Any) -> Recipe:
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    return Recipe.from_dict({"model": {"name": name, "options": WIDE | overlay | options}})


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("classes", [0, 7])
def test_a_file_starts_all_but_the_head(
    tmp_path: Path, data: Data, suffix: str, classes: int
) -> None:
    source = timm.create_model("convnextv2_atto", num_classes=classes, **WIDE).state_dict()
    path = tmp_path / f"first.{suffix}"
    if suffix == "pth":  # as training scripts leave it
        torch.save({"epoch": 3, "model": {f"module.{key}": x for key, x in source.items()}}, path)
    else:
        save_file(source, path)
    options = {"drop_path_rate": 0.2, "head_init_scale": 0.001}
    model = make_model(from_file(path, **options), data)
    state = model.state_dict()
    heads = {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(state[key], x) for key, x in source.items() if key not in heads)
    assert state["head.fc.weight"].shape == (3, 8)
    assert 1e-5 < float(state["head.fc.weight"].std()) < 4e-5 and not state["head.fc.bias"].any()


def test_files_that_do_not_serve(tmp_path: Path, data: Data) -> None:
    with pytest.raises(
        KeyFiltersError, match=r"weights of convnextv2_atto.fcmae cannot be had.*nam"
    ):
        make_model(from_file(tmp_path / "none.pth"), data)
    small = timm.create_model("convnextv2_atto", num_classes=0, depths=[1, 1, 1, 1], **WIDE)
    for name, state in (("other", {"a": torch.zeros(2)}), ("small", small.state_dict())):
        save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(KeyFiltersError, match=r"have no stem.0.weight of .* and lack \d+ more"):
        make_model(from_file(tmp_path / "other.safetensors"), data)
    with pytest.raises(KeyFiltersError, match=r"no stages.0.blocks.1.conv_dw.weight of .* 23 more"):
        make_model(from_file(tmp_path / "small.safetensors"), data)
    with pytest.raises(KeyFiltersError, match=r"does not take model.options .*size mismatch"):
        make_model(from_file(tmp_path / "small.safetensors", dims=[8, 8, 8, 16]), data)


def test_a_convmixer_of_any_shape(data: Data) -> None:
    shape = {"dim": 12, "depth": 2, "kernel_size": 5, "patch_size": 4}
    recipe = Recipe.from_dict({"model": {"name": "convmixer", "options": shape}})
    first, again = (make_model(recipe, data) for _ in range(2))
    assert [x.weight.shape for x in kf.read(first).layers] == [(12, 5, 5)] * 2
    assert first(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    other = make_model(replace(recipe, seed=1), data)
    assert not torch.equal(other.stem[0].weight, first.stem[0].weight)
    with pytest.raises(KeyFiltersError, match=r"does not take model.options .*kernel'"):
        make_model(
            Recipe.from_dict({"model": {**vars(recipe.model), "options": {"kernel": 5}}}), data
        )


@pytest.mark.parametrize(
    "options", [{"depths": [1, 1]}, {"act_layer": "swish2"}, {"output_stride": 3}]
)
def test_options_that_a_model_cannot_take_are_named(data: Data, options: dict[str, Any]) -> None:
    recipe = Recipe.from_dict({"model": {"name": "convnextv2_atto", "options": options}})
    with pytest.raises(KeyFiltersError, match=r"does not take model\.options"):
        make_model(recipe, data)

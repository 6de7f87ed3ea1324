"""Models of recipes that start from a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

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

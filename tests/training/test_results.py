from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe, load_data, load_trained, make_model, train
from keyfilters.treatment import FilterRecipe

SHAPE = {"dim": 8, "depth": 1, "kernel_size": 3, "patch_size": 2}


def tiny(**sections: Any) -> Recipe:
    made = {
        "model": {"name": "convmixer", "options": SHAPE},
        "data": {"samples": 64},
        "schedule": {"steps": 4, "select": "last"},
        "ema": {"decay": 0.5, "warmup": False},
    }
    return Recipe.from_dict(made | sections)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_trained_network_is_loaded_from_its_folder(tmp_path: Path) -> None:
    trained = train(tiny(), tmp_path, device="cpu")
    loaded, ema = load_trained(tmp_path), load_trained(tmp_path, ema=True)
    assert trained.ema is not None and not loaded.training
    assert same(loaded, trained.model) and same(ema, trained.ema) and not same(loaded, ema)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(images), trained.model(images))


def test_a_network_on_keys_is_loaded_with_plain_filters(tmp_path: Path) -> None:
    made = {"model": {"name": "test_convnext", "options": {"patch_size": 1}}}
    made |= {"data": {"samples": 64}, "schedule": {"steps": 2}, "filters": {"keys": "random:4"}}
    recipe = FilterRecipe.from_dict(made)
    network = make_model(recipe, load_data("digits", samples=64))
    with pytest.raises(KeyFiltersError, match=r"\[filters\].*give it as model="):
        train(recipe, tmp_path)
    recipe.filters.apply_(network, recipe.seed)
    trained = train(recipe, tmp_path, model=network, device="cpu")
    loaded, images = load_trained(tmp_path), torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(images), trained.model(images))
    assert len(list(loaded.parameters())) == len(loaded.state_dict())


def test_a_network_that_began_trained_is_loaded_without_those_weights(tmp_path: Path) -> None:
    first, out = tmp_path / "first.pth", tmp_path / "out"
    source = timm.create_model("test_convnext", num_classes=10, in_chans=1, patch_size=1)
    torch.save(source.state_dict(), first)
    options = {"patch_size": 1, "checkpoint_path": str(first)}
    trained = train(tiny(ema={}, model={"name": "test_convnext", "options": options}), out)
    first.unlink()
    assert same(load_trained(out), trained.model)


def test_a_folder_that_holds_no_such_network(tmp_path: Path) -> None:
    data = load_data("digits", samples=64)
    with pytest.raises(KeyFiltersError, match=r"recipe\.toml"):
        load_trained(tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    train(tiny(ema={}), tmp_path, model=other, data=data, device="cpu")
    with pytest.raises(KeyFiltersError, match=r"another network than convmixer"):
        load_trained(tmp_path)
    with pytest.raises(KeyFiltersError, match=r"ema\.safetensors"):
        load_trained(tmp_path, ema=True)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(KeyFiltersError, match=r"summary\.json cannot be read"):
        load_trained(tmp_path)

"""The archive of our own networks: complete, the same bytes each time, and read by everything."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe, load_trained, train
from keyfilters.treatment import FilterRecipe

SHAPE = {"dim": 8, "depth": 1, "kernel_size": 3, "patch_size": 2}
RECIPE = {
    "model": {"name": "convmixer", "options": SHAPE},
    "data": {"samples": 64, "channels": 3},
    "schedule": {"steps": 2},
}


@pytest.fixture
def zoo(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("zoo")


def test_an_archive_of_runs(zoo: ModuleType, tmp_path: Path) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, run in enumerate(runs):
        train(Recipe.from_dict(RECIPE | {"seed": seed}), run, device="cpu")
    archives = [tmp_path / f"{name}.zip" for name in "ab"]
    for archive, order in zip(archives, (runs, runs[::-1]), strict=True):
        zoo.pack(order, archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    bank = kf.read(archives[0])
    assert [(x.model, x.weight.shape) for x in bank.layers] == [
        ("first", (8, 3, 3)),
        ("second", (8, 3, 3)),
    ]
    with zipfile.ZipFile(archives[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    for run in runs:
        unpacked = load_trained(tmp_path / "unpacked" / run.name)
        before = load_trained(run).state_dict().values()
        assert all(map(torch.equal, unpacked.state_dict().values(), before))
    card = (tmp_path / "unpacked" / "second" / "README.md").read_text()
    assert "seed 1" in card and "8 depthwise filters" in card and "on digits: 64 images" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "unpacked" / "second" / "recipe.toml").read_text().count("digits") == 1
    with pytest.raises(KeyFiltersError, match="called the same"):
        zoo.pack([runs[0], runs[0]], tmp_path / "c.zip")


def test_no_folder_and_no_weights_of_others_are_packed(zoo: ModuleType) -> None:
    recipe = FilterRecipe.from_dict({"data": {"name": "hf:/home/x/images", "root": "/home/x"}})
    text = zoo.without_paths(recipe).to_toml()
    assert "hf:images" in text and "home" not in text
    names = {
        "digits": "digits",
        "hf:ylecun/mnist": "hf:ylecun/mnist",
        "/home/x/images": "images",
        "hf:/home/x/a:b/images": "hf:images",
        "hf:~/images#label": "hf:images#label",
    }
    assert {name: zoo.public_name(name) for name in names} == names
    zoo.without_paths(FilterRecipe.from_dict({"model": {"options": {"pretrained": False}}}))
    overlay = {"pretrained_cfg_overlay": {"file": "/home/x/first.pth"}}
    for treated in (
        {"filters": {"freeze": True}},
        {"model": {"options": {"pretrained": True}}},
        {"model": {"options": overlay}},
    ):
        with pytest.raises(KeyFiltersError, match="untrained and untreated"):
            zoo.without_paths(FilterRecipe.from_dict(treated))

"""What a recipe does to filters, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.surgery import bake_filters_
from keyfilters.surgery.filter_recipe import (
    FilterRecipe,
    Filters,
    apply_filters_,
    check_frozen,
    describe,
)
from keyfilters.surgery.targets import find_targets

B = "lindeberg2026-B"


def made(seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_convnext", **options)


def filters_of(model: nn.Module) -> list[np.ndarray]:
    return [site.filters for site in find_targets(model)[0]]


def test_a_recipe_with_filters_survives_its_file(tmp_path: Path) -> None:
    recipe = FilterRecipe.from_dict(
        {"seed": 2, "filters": {"keys": B, "learn": ["bias", "sigma"], "unit_norm": True}}
    )
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert FilterRecipe.load(tmp_path / "r.toml") == recipe
    changed = FilterRecipe.load(tmp_path / "r.toml", "filters.learn=[]", "filters.freeze=true")
    assert changed.filters == Filters(keys=B, unit_norm=True, freeze=True)
    assert "filters" not in FilterRecipe().to_dict()
    assert FilterRecipe.from_dict(FilterRecipe().to_dict()) == FilterRecipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key": B}, r"'key' is no key of \[filters\]; .*nearest names are: keys"),
        ({"learn": ["bias"]}, "filters.learn needs keys; set filters.keys too"),
        ({"assign_from": "x.pth"}, "filters.assign_from needs keys"),
        ({"unit_norm": True}, "filters.unit_norm needs keys"),
        ({"assignment": "random"}, "filters.assignment is that of keys"),
        ({"keys": B, "assignment": "nearest"}, "one of trained, random is expected"),
        ({"keys": B, "learn": ["biass"]}, "has 'biass'; any of amplitude, bias, sigma.*: bias"),
        ({"keys": B, "learn": [3]}, "filters.learn is 3"),
        ({"keys": B, "learn": "bias"}, "filters.learn is 'bias'"),
        ({"keys": B, "learn": ["bias"], "freeze": True}, "frozen filters learn nothing"),
        ({"keys": B, "assign_from": "x", "assignment": "random"}, "what is drawn needs no source"),
        ({"initialize": "impulse", "transfer": "x"}, "initialize and filters.transfer would over"),
        ({"keys": B, "transfer": "x", "assign_from": "x"}, "transfer and filters.assign_from"),
    ],
)
def test_choices_that_exclude_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        FilterRecipe.from_dict({"filters": values})


def test_nothing_by_default() -> None:
    model, same = made(), made()
    assert apply_filters_(model, Filters()) is None
    assert all(map(np.array_equal, filters_of(model), filters_of(same)))
    assert describe(Filters(), None) == "as the model has them"


def test_initialised_and_frozen() -> None:
    model, other = made(), made()
    filters = Filters(initialize="center-surround?std=keep&gammas=0.5", freeze=True)
    table = apply_filters_(model, filters, seed=3)
    kf.initialize_filters_(other, "center-surround", std="keep", gammas=[0.5], seed=3)
    assert all(map(np.array_equal, filters_of(model), filters_of(other)))
    assert not any(site.weight.requires_grad for site in find_targets(model)[0])
    assert describe(filters, table) == f"initialised {filters.initialize}; frozen"


def test_frozen_filters_that_moved_are_named() -> None:
    model = made()
    table = apply_filters_(model, Filters(freeze=True))
    check_frozen(model, table)
    check_frozen(model, None)
    site = find_targets(model)[0][1]
    with torch.no_grad():
        site.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(KeyFiltersError, match=f"frozen, but moved: {site.name}$"):
        check_frozen(model, table)
    check_frozen(model, apply_filters_(model, Filters(keys=B)))  # keys are no such filters


def test_initialisation_that_cannot_be(tmp_path: Path) -> None:
    for asked, message in (
        ("center-surrund", "no initialisation is called"),
        ("covariance?schedule=wide", "has a bad value"),
        ("keys?keys=lindeberg2026-B", "other keys cannot be named here"),
        (f"idealized?bank={tmp_path / 'none.pth'}", "there is no file"),
    ):
        with pytest.raises(KeyFiltersError, match=message):
            apply_filters_(made(), Filters(initialize=asked))


def test_transferred(tmp_path: Path) -> None:
    source = made(1)
    torch.save(source.state_dict(), tmp_path / "source.pth")
    filters = Filters(transfer=str(tmp_path / "source.pth"))
    model = made()
    table = apply_filters_(model, filters)
    assert all(map(np.array_equal, filters_of(model), filters_of(source)))
    assert describe(filters, table).startswith("transferred from ")
    assert all(site.weight.requires_grad for site in find_targets(model)[0])


@pytest.mark.parametrize("renamed", [False, True])
def test_assigned_by_another_network(tmp_path: Path, renamed: bool) -> None:
    source, path = made(1), tmp_path / "trained.pth"
    state = source.state_dict()
    if renamed:  # as the authors of ConvNeXt V2 call them: then the order tells
        state = {name.replace("conv_dw", "dwconv"): x for name, x in state.items()}
    torch.save({"model": state}, path)
    filters = Filters(keys=B, assign_from=str(path))
    model = made()
    table = apply_filters_(model, filters)
    assert table is not None and not table["parameters"].any() and (table["left"] == "").all()
    assert [n for n, _ in model.named_parameters() if "parametrizations" in n] == []
    bake_filters_(model)
    keys = kf.KeySet.published(B)
    for drawn, own in zip(filters_of(model), filters_of(source), strict=True):
        np.testing.assert_allclose(drawn, keys.reconstruct(*keys.assign(own)[:3]), atol=1e-6)
    rest = {n: x for n, x in made().state_dict().items() if not n.endswith("conv_dw.weight")}
    assert all(torch.equal(model.state_dict()[name], x) for name, x in rest.items())
    assert f"assigned by {path}" in describe(filters, table)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    wider = {"conv.weight": torch.randn(8, 1, 7, 7), "more.weight": torch.randn(8, 1, 7, 7)}
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(KeyFiltersError, match=r"2 layers .*model's 9, first \(8, 7, 7\) for \(24"):
        apply_filters_(made(), Filters(keys=B, assign_from=str(tmp_path / "wider.safetensors")))
    for number, name in enumerate(("a", "b"), start=1):  # the same model twice would count once
        state = {key: number * value for key, value in made().state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "wider.safetensors").unlink()
    with pytest.raises(KeyFiltersError, match="holds 2 models: a, b; name the file of one"):
        apply_filters_(made(), Filters(keys=B, assign_from=str(tmp_path)))


def test_keys_of_every_size_of_the_model() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, 2, groups=8)
    )
    filters = Filters(keys=B, learn=("amplitude", "bias"))
    table = apply_filters_(model, filters)
    assert table is not None
    assert table[["layer", "size", "parameters"]].values.tolist() == [
        ["0", "3×3", 16],
        ["1", "5×5", 16],
        ["2", "2×2", 0],
    ]
    assert table["left"].tolist()[:2] == ["", ""] and "the keys are" in table["left"][2]
    said = describe(filters, table)
    assert said.startswith("16 filters in 2 of 3 layers on the keys") and "(32 numbers)" in said


def test_keys_of_a_file_or_none(tmp_path: Path) -> None:
    kf.KeySet.random(5, 7).save(tmp_path / "keys.npz")
    filters = Filters(keys=str(tmp_path / "keys.npz"), assignment="random")
    first, again, other = made(), made(), made()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        table = apply_filters_(model, filters, seed)
        bake_filters_(model)
    assert "assigned at random; frozen" in describe(filters, table)
    assert all(map(np.array_equal, filters_of(first), filters_of(again)))
    assert not any(map(np.array_equal, filters_of(first), filters_of(other)))
    with pytest.raises(KeyFiltersError, match=r"there is no file none.npz"):
        apply_filters_(made(), Filters(keys="none.npz"))
    with pytest.raises(KeyFiltersError, match="no published parameters are called"):
        apply_filters_(made(), Filters(keys="lindeberg2026-E"))
    even = nn.Sequential(nn.Conv2d(8, 8, 2, groups=8))
    with pytest.raises(KeyFiltersError, match="the filters are 2×2"):
        apply_filters_(even, Filters(keys=B))

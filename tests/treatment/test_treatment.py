"""What is done to filters before training, by a line of text or by a recipe."""

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
from keyfilters.surgery.key_choice import named_key_sets
from keyfilters.treatment import FilterRecipe, Treatment, initialize_by_name_

B = "lindeberg2026-B"


def made(seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_convnext", **options)


def filters_of(model: nn.Module) -> list[np.ndarray]:
    return [layer.weight for layer in kf.read(model).layers]


def test_a_recipe_with_filters_survives_its_file(tmp_path: Path) -> None:
    recipe = FilterRecipe.from_dict(
        {"seed": 2, "filters": {"keys": B, "learn": ["bias", "sigma"], "unit_norm": True}}
    )
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert FilterRecipe.load(tmp_path / "r.toml") == recipe
    text = FilterRecipe.from_dict({"seed": 2, "filters": str(recipe.filters)})
    assert text == recipe
    changed = FilterRecipe.load(tmp_path / "r.toml", "filters.learn=[]", "filters.freeze=true")
    assert changed.filters == Treatment(keys=B, unit_norm=True, freeze=True)
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
        ({"keys": B, "learn": ["biass"]}, "filters.learn is 'biass'.*amplitude.*: bias"),
        ({"keys": B, "learn": [3]}, "filters.learn is 3"),
        ({"keys": B, "learn": "bias"}, "filters.learn is 'bias'"),
        ({"keys": B, "learn": ["bias"], "freeze": True}, "frozen filters learn nothing"),
        ({"keys": B, "assign_from": "x", "assignment": "random"}, "what is drawn needs no source"),
        ({"keys_from": "x.pth"}, "filters.keys_from needs keys"),
        ({"keys": B, "keys_from": "x.pth"}, "come from no filters, set keys to lines:8"),
        ({"control": "impulse"}, "filters.control is that of a transfer"),
        ({"initialize": "impulse", "transfer": "x"}, "initialize and filters.transfer would over"),
        ({"keys": B, "transfer": "x", "assign_from": "x"}, "transfer and filters.assign_from"),
    ],
)
def test_choices_that_exclude_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        FilterRecipe.from_dict({"filters": values})


def test_nothing_by_default() -> None:
    model, same = made(), made()
    treated = Treatment().apply_(model)
    treated.finish(model)
    assert treated.table is None and str(treated) and str(Treatment()) == "learned"
    assert all(map(np.array_equal, filters_of(model), filters_of(same)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learned", Treatment()),
        ("frozen", Treatment(freeze=True)),
        ("idealized", Treatment(keys="idealized")),
        ("idealized?assign_from=x.pth", Treatment(keys="idealized", assign_from="x.pth")),
        ("keys", Treatment(keys=B)),
        ("keys?keys=random&learn=bias", Treatment(keys="random:8", learn=("bias",))),
        ("keys?drawn=1&unit_norm=1", Treatment(keys=B, assignment="random", unit_norm=True)),
        ("keys?keys=lines:4&learn=amplitude,bias&assign_from=timm:x?pretrained=false",
         Treatment(keys="lines:4", learn=("amplitude", "bias"),
                   assign_from="timm:x?pretrained=false")),
        ("transfer?from=package:x&control=impulse&freeze=1",
         Treatment(transfer="package:x", control="impulse", freeze=True)),
        ("initialize:center-surround?std=keep", Treatment(initialize="center-surround?std=keep")),
        ("initialize:impulse?freeze=1", Treatment(initialize="impulse", freeze=True)),
        ("initialize:impulse?std=keep&freeze=1",
         Treatment(initialize="impulse?std=keep", freeze=True)),
    ],
)  # fmt: skip
def test_a_line_of_text_says_it_all(text: str, expected: Treatment) -> None:
    found = Treatment.parse(text)
    assert found == expected and Treatment.parse(str(found)) == found
    assert Treatment(**found.to_dict()) == found
    assert FilterRecipe.from_dict({"filters": text}).filters == found
    assert set(found.factors()) >= {"filters", "keys", "assignment", "bias"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kees", "'kees' cannot be done to filters; .*keys"),
        ("frozen?keys=consensus", "frozen has no option 'keys'"),
        ("keys?lern=bias", "keys has no option 'lern'.*learn"),
        ("keys?learn=mean", "learn is 'mean'"),
        ("keys?drawn=2", "drawn is 2; 0 or 1"),
        ("keys?assignment=nearest", "one of trained, random"),
        ("transfer", "transfer.from=SOURCE"),
        ("transfer?from=x&control=shuffled", "filters.control is 'shuffled'"),
    ],
)
def test_lines_that_say_nothing(text: str, message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        Treatment.parse(text)


def test_initialised_and_frozen() -> None:
    model, other = made(), made()
    filters = Treatment(initialize="center-surround?std=keep&gammas=0.5", freeze=True)
    treated = filters.apply_(model, seed=3)
    kf.initialize_filters_(other, "center-surround", std="keep", gammas=[0.5], seed=3)
    assert all(map(np.array_equal, filters_of(model), filters_of(other)))
    assert not any(p.requires_grad for n, p in model.named_parameters() if "conv_dw.weight" in n)
    assert filters.initialize in str(treated) and str(treated).endswith("frozen")


def test_initialised_by_keys_of_a_name() -> None:
    model, other = made(), made()
    initialize_by_name_(model, "keys?keys=random:3", 1)
    kf.initialize_filters_(other, "keys", keys=kf.KeySet.random(3, 7, 1), seed=1)
    assert all(map(np.array_equal, filters_of(model), filters_of(other)))


def test_each_its_own_idealised_model(tmp_path: Path) -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 3, 3, groups=3))

    model, other = net(0), net(0)
    treated = Treatment.parse("idealized").apply_(model)
    kf.replace_filters_(other, "idealized")
    assert all(map(np.array_equal, filters_of(model), filters_of(other)))
    treated.finish(model)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    moved = net(5)
    Treatment.parse(f"idealized?assign_from={tmp_path / 'other.pth'}").apply_(moved)
    kf.replace_filters_(other, "idealized")
    assert all(map(np.array_equal, filters_of(moved), filters_of(other)))


def test_frozen_filters_and_keys_that_moved_are_named() -> None:
    model = made()
    treated = Treatment(freeze=True).apply_(model)
    treated.check(model)
    name, weight = next((n, p) for n, p in model.named_parameters() if "conv_dw.weight" in n)
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(KeyFiltersError, match=f"frozen, but moved: {name}"):
        treated.check(model)
    model = made()
    treated = Treatment(keys=B, learn=("bias",)).apply_(model)
    treated.check(model)
    name, buffer = next((n, x) for n, x in model.named_buffers() if "parametrizations" in n)
    buffer += 1
    with pytest.raises(KeyFiltersError, match="moved"):
        treated.finish(model)


def test_initialisation_that_cannot_be(tmp_path: Path) -> None:
    for asked, message in (
        ("center-surrund", "no initialisation is called"),
        ("covariance?schedule=wide", "has a bad value"),
        ("keys?keys=none", "no keys are called"),
        (f"idealized?bank={tmp_path / 'none.pth'}", "there is no file"),
    ):
        with pytest.raises(KeyFiltersError, match=message):
            Treatment(initialize=asked).apply_(made())


def test_transferred_and_its_control(tmp_path: Path) -> None:
    source = made(1)
    torch.save(source.state_dict(), tmp_path / "source.pth")
    model, shuffled = made(), made()
    Treatment(transfer=str(tmp_path / "source.pth")).apply_(model)
    assert all(map(np.array_equal, filters_of(model), filters_of(source)))
    assert all(p.requires_grad for p in model.parameters())
    text = f"transfer?from={tmp_path / 'source.pth'}&control=tap-shuffled"
    Treatment.parse(text).apply_(shuffled)
    for one, other in zip(filters_of(shuffled), filters_of(source), strict=True):
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(np.sort(one.ravel()), np.sort(other.ravel()), rtol=1e-5)


def test_only_layers_that_have_keys_are_taken_from_another_network(tmp_path: Path) -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, 7, groups=8))

    kf.KeySet.published(B).save(tmp_path / "keys7.npz")
    torch.save(net(1).state_dict(), tmp_path / "trained.pth")
    model, own = net(0), filters_of(net(0))
    filters = Treatment(keys=str(tmp_path / "keys7.npz"), assign_from=str(tmp_path / "trained.pth"))
    filters.apply_(model).finish(model)
    assert np.array_equal(filters_of(model)[0], own[0])
    assert not np.array_equal(filters_of(model)[1], own[1])


def test_a_file_that_holds_the_patches_of_a_grey_image_too(tmp_path: Path) -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.Conv2d(8, 8, 7, groups=8))

    lender, model = net(1), net(0)
    torch.save(lender.state_dict(), tmp_path / "trained.pth")
    Treatment(keys=B, assign_from=str(tmp_path / "trained.pth")).apply_(model).finish(model)
    keys, own = kf.KeySet.published(B), filters_of(lender)[-1]
    drawn = keys.reconstruct(*keys.assign(own)[:3])
    np.testing.assert_allclose(filters_of(model)[-1], drawn, atol=1e-6)
    assert torch.equal(model[0].weight, net(0)[0].weight)  # type: ignore[index]


def test_the_contents_of_what_is_named_tell_treatments_apart(tmp_path: Path) -> None:
    path = tmp_path / "lender.pth"
    found = []
    for seed in (0, 1):
        torch.save(made(seed).state_dict(), path)
        found.append(Treatment(keys=B, assign_from=str(path)).contents())
    assert list(found[0]) == [str(path)] and found[0] != found[1]
    assert Treatment.parse("keys?keys=random").contents() == {}


@pytest.mark.parametrize("renamed", [False, True])
def test_assigned_by_another_network(tmp_path: Path, renamed: bool) -> None:
    source, path = made(1), tmp_path / "trained.pth"
    state = source.state_dict()
    if renamed:  # as the authors of ConvNeXt V2 call them: then the order tells
        state = {name.replace("conv_dw", "dwconv"): x for name, x in state.items()}
    torch.save({"model": state}, path)
    filters = Treatment(keys=B, assign_from=str(path))
    model = made()
    treated = filters.apply_(model)
    table = treated.table
    assert table is not None and not table["parameters"].any() and (table["left"] == "").all()
    assert [n for n, _ in model.named_parameters() if "parametrizations" in n] == []
    treated.finish(model)
    keys = kf.KeySet.published(B)
    for drawn, own in zip(filters_of(model), filters_of(source), strict=True):
        np.testing.assert_allclose(drawn, keys.reconstruct(*keys.assign(own)[:3]), atol=1e-6)
    rest = {n: x for n, x in made().state_dict().items() if not n.endswith("conv_dw.weight")}
    assert all(torch.equal(model.state_dict()[name], x) for name, x in rest.items())
    assert f"assigned by {path}" in str(treated)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    wider = {"conv.weight": torch.randn(8, 1, 7, 7), "more.weight": torch.randn(8, 1, 7, 7)}
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(KeyFiltersError, match=r"2 layers .*model's 9, first \(8, 7, 7\) for \(24"):
        Treatment(keys=B, assign_from=str(tmp_path / "wider.safetensors")).apply_(made())
    for number, name in enumerate(("a", "b"), start=1):  # the same model twice would count once
        state = {key: number * value for key, value in made().state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "wider.safetensors").unlink()
    with pytest.raises(KeyFiltersError, match="holds 2 models: a, b; name the file of one"):
        Treatment(keys=B, assign_from=str(tmp_path)).apply_(made())


def test_keys_of_every_size_of_the_model() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, 2, groups=8)
    )
    filters = Treatment(keys=B, learn=("amplitude", "bias"))
    treated = filters.apply_(model)
    table = treated.table
    assert table is not None
    assert table[["layer", "size", "parameters"]].values.tolist() == [
        ["0", "3×3", 16],
        ["1", "5×5", 16],
        ["2", "2×2", 0],
    ]
    assert table["left"].tolist()[:2] == ["", ""] and "the keys are" in table["left"][2]
    said = str(treated)
    assert said.startswith("16 filters in 2 of 3 layers on the keys") and "(32 numbers)" in said


def test_keys_of_a_file_or_none(tmp_path: Path) -> None:
    kf.KeySet.random(5, 7).save(tmp_path / "keys.npz")
    filters = Treatment(keys=str(tmp_path / "keys.npz"), assignment="random")
    first, again, other = made(), made(), made()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        treated = filters.apply_(model, seed)
        treated.finish(model)
    assert "assigned at random; frozen" in str(treated)
    assert all(map(np.array_equal, filters_of(first), filters_of(again)))
    assert not any(map(np.array_equal, filters_of(first), filters_of(other)))
    with pytest.raises(KeyFiltersError, match=r"there is no file none.npz"):
        Treatment(keys="none.npz").apply_(made())
    with pytest.raises(KeyFiltersError, match="no keys are called"):
        Treatment(keys="lindeberg2026-E").apply_(made())
    even = nn.Sequential(nn.Conv2d(8, 8, 2, groups=8))
    with pytest.raises(KeyFiltersError, match="2×2"):
        Treatment(keys=B).apply_(even)


def test_keys_of_a_name_at_the_sizes_that_they_have() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 9, groups=8))
    bank = kf.read(model)
    sizes = {
        name: [keys.size for keys in named_key_sets(name, bank)]
        for name in ("consensus", "random:4", "lines:2", B)
    }
    assert sizes == {"consensus": [3], "random:4": [3, 9], "lines:2": [3, 9], B: [3, 9]}
    table = Treatment.parse("keys?keys=consensus").apply_(model).table
    assert table is not None and [bool(left) for left in table["left"]] == [False, True]
    with pytest.raises(KeyFiltersError, match="consensus"):
        named_key_sets("consensus", kf.read(model[1]))


def test_scales_are_learned_where_they_can_be() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, (1, 7), groups=8))
    table = Treatment(keys=B, learn=("sigma",)).apply_(net).table
    assert table is not None
    assert table["parameters"].tolist() == [16, 0] and "the keys are 5×5" in table["left"][1]
    rows = nn.Sequential(nn.Conv1d(8, 8, 7, groups=8), nn.Conv1d(8, 8, 4, groups=8))
    both = Treatment(keys=B, learn=("bias",)).apply_(rows).table
    assert both is not None
    assert both["left"].tolist() == ["", ""] and both["parameters"].tolist() == [8, 8]


@pytest.mark.parametrize("kind", ["lines", "covariance"])
def test_keys_come_from_the_filters_of_another_network(tmp_path: Path, kind: str) -> None:
    ours = made()
    size = kf.read(ours).layers[0].size
    theirs = nn.Sequential(nn.Conv2d(40, 40, size, groups=40), nn.Conv2d(40, 40, 2, groups=40))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    text = f"keys?keys={kind}:2&keys_from={tmp_path / 'theirs.safetensors'}&assignment=random"
    treatment = Treatment.parse(text)
    assert Treatment.parse(str(treatment)) == treatment and treatment.keys_from in text
    assert list(treatment.contents()) == [treatment.keys_from], "a change of that file is seen"
    treated = treatment.apply_(ours)
    treated.finish(ours)
    expected = kf.KeySet.named(f"{kind}:2", size, 0, bank=kf.read(theirs)).filters.reshape(2, -1)
    for filters in filters_of(ours):
        flat = filters.reshape(len(filters), -1)
        unit = flat - flat.mean(1, keepdims=True)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(unit @ expected.T).max(1), 1, atol=1e-5)

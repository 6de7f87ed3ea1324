from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields.models import render_models
from keyfilters.surgery.files import replace_in_file
from keyfilters.surgery.replace import replace_filters_
from keyfilters.surgery.targets import find_targets
from tests.surgery.networks import batches, classifier


def test_filters_become_the_nearest_on_the_keys(network: nn.Module) -> None:
    keys = KeySet.published("lindeberg2026-B", size=7)
    old = network[5].weight.detach().double().numpy()[:, 0]
    others = {n: x.clone() for n, x in network.state_dict().items() if n != "5.weight"}
    report = replace_filters_(network, keys)
    new = network[5].weight.detach().double().numpy()[:, 0]
    for before, after in zip(old, new, strict=True):
        candidates = []
        for x in keys.filters:
            design = np.stack([x.ravel(), np.ones(49)], axis=1)
            solution, *_ = np.linalg.lstsq(design, before.ravel(), rcond=None)
            candidates.append(design @ solution)
        best = min(candidates, key=lambda c: np.linalg.norm(c - before.ravel()))
        np.testing.assert_allclose(after.ravel(), best, atol=1e-7)
    assert all(torch.equal(x, network.state_dict()[n]) for n, x in others.items())
    row = report.set_index("layer").loc["5"]
    assert (row["keys"], row["filters"], row["left"]) == (8, 24, "")
    assert row["error"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    bank = kf.FilterBank([Layer("net", "5", old.astype(np.float32), None, None, 0.0)])
    null = kf.null_bank(bank, "covariance").layers[0].weight.astype(float)
    centred = null - null.mean((1, 2), keepdims=True)
    lost = (keys.assign(null).residual ** 2).sum() / (centred**2).sum()
    assert row["chance"] == pytest.approx(1 - lost, rel=1e-4)
    flat, now = old.reshape(24, 49), new.reshape(24, 49)
    cosine = [abs(np.corrcoef(x, y)[0, 1]) for x, y in zip(flat, now, strict=True)]
    assert row["cosine"] == pytest.approx(np.median(cosine), rel=1e-5)
    nearest = [np.argmax([abs((x * f).sum()) for x in keys.filters]) for f in old]
    assert row["used"] == len(set(nearest)) > 1
    left = report.set_index("layer")["left"]
    assert left["1"] == "filters of 5×5, the keys are 7×7"
    assert "1×7" in left["4"]


def test_keys_that_hold_the_filters_change_nothing() -> None:
    model, images = classifier(), batches(12)
    before = model(images)
    sets = {}
    for layer in kf.read(model).layers:
        sets[layer.name] = KeySet.from_filters(layer.weight)
    for options in ({}, {"images": images, "recalibrate": True}):
        replaced = copy.deepcopy(model)
        report = replace_filters_(replaced, sets, **options)
        torch.testing.assert_close(replaced(images), before, rtol=2e-4, atol=2e-5)
        assert (report["explained"] > 1 - 1e-9).all()


def test_several_sizes_layers_and_patterns() -> None:
    model = classifier()
    sets = [KeySet.random(4, size=k) for k in (3, 5)]
    one = replace_filters_(copy.deepcopy(model), sets, layers=["3"])
    assert one.set_index("layer")["left"].to_dict() == {
        "0": "not among the layers asked for",
        "3": "",
    }
    all_of_them = replace_filters_(model, sets, layers="*")
    assert (all_of_them["left"] == "").all() and (all_of_them["used"] <= 4).all()


def test_state_dicts_plain_and_wrapped() -> None:
    model = classifier()
    keys = [KeySet.random(4, size=k) for k in (3, 5)]
    plain = {name: x.clone() for name, x in model.state_dict().items()}
    wrapped = {"epoch": 3, "state_dict": {f"module.{n}": x.clone() for n, x in plain.items()}}
    replace_filters_(model, keys)
    report = replace_filters_(plain, keys, layers=["0", "3"])  # the first must be asked for
    replace_filters_(wrapped, keys, layers=["0", "3"])
    for name, x in model.state_dict().items():
        assert torch.equal(x, plain[name])
        assert torch.equal(x, wrapped["state_dict"][f"module.{name}"])
    assert (report["left"] == "").all()
    again = replace_filters_(plain, keys)
    assert "one-channel image" in again.set_index("layer")["left"]["0"]


def test_idealized_models_replace_each_filter() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 5, groups=16))
    old = model[0].weight.detach().numpy()[:, 0].copy()
    with torch.no_grad():
        model[0].weight[3] = 0.25  # a filter without a shape stays
    report = replace_filters_(model, "idealized")
    new = model[0].weight.detach().numpy()[:, 0]
    expected = render_models(kf.match(old, null=None), (5, 5))
    keep = np.arange(16) != 3
    np.testing.assert_allclose(new[keep], expected[keep], atol=2e-4)
    np.testing.assert_allclose(new[3], 0.25, atol=1e-6)
    assert report["keys"].item() == report["used"].item() == 16
    pairs = [np.corrcoef(old[i].ravel(), new[i].ravel())[0, 1] for i in np.flatnonzero(keep)]
    assert report["cosine"].item() == pytest.approx(np.median(np.abs(pairs)), rel=1e-4)


def test_images_lower_the_error_of_the_outputs() -> None:
    images = batches(48)
    keys = [KeySet.random(6, size=k, seed=1) for k in (3, 5)]
    original = classifier()
    errors = {}
    for name, options in {"plain": {}, "images": {"images": images}}.items():
        model = copy.deepcopy(original)
        report = replace_filters_(model, keys, **options)
        with torch.no_grad():
            errors[name] = float((model(images) - original(images)).norm())
        assert report["output_error"].notna().all() == (name == "images")
    assert errors["images"] < 0.7 * errors["plain"]


def test_half_precision_is_kept() -> None:
    model = classifier().half()
    replace_filters_(model, [KeySet.random(4, size=k) for k in (3, 5)])
    assert {x.dtype for x in model.parameters()} == {torch.float16}


def test_what_cannot_be_done_is_refused_and_changes_nothing() -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    seven = KeySet.published("lindeberg2026-B")
    three = KeySet.random(4, size=3)
    for keys, options, message in (
        (seven, {}, r"the keys are 7×7, but the model's filters are 3×3, 5×5; type for example"),
        (three, {"layers": ["features.0"]}, "no depthwise layer is called 'features.0'"),
        ({"33": three}, {}, "no depthwise layer is called '33'; the nearest names are: 3"),
        ({"0": seven}, {}, "keys for 0 are 7×7, its filters 3×3"),
        ([three, three], {}, "two key sets of one size"),
        ("ideal", {}, "must be a KeySet or 'idealized', got 'ideal'"),
        (three, {"images": torch.ones(3, 16, 16)}, "expected images of shape"),
        (three, {"images": torch.ones(1, 8, 16, 16), "ridge": -1}, "ridge must be at least 0"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=message):
            replace_filters_(model, keys, **options)
    with pytest.raises(kf.KeyFiltersError, match="images need the model itself"):
        replace_filters_(model.state_dict(), three, images=torch.ones(1, 8, 16, 16))
    with pytest.raises(kf.KeyFiltersError, match="no depthwise convolution"):
        replace_filters_(nn.Linear(3, 3), three)
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(kf.KeyFiltersError, match="layer 0 holds filters that are not finite"):
        replace_filters_(model, three)
    model.load_state_dict(before)
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_filters_of_another_shape_are_not_written() -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    [_, target], _ = find_targets(model)
    for shape in ((16, 3, 3), (8, 5, 5), (16, 1, 5, 5)):
        with pytest.raises(kf.KeyFiltersError, match=r"3: its filters have shape \(16, 5, 5\)"):
            target.write_(np.zeros(shape))
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_lists_of_keys() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=8))
    three, five = (KeySet.random(4, size=k) for k in (3, 5))
    for keys in ([three, five], (five, three)):
        assert not kf.replace_filters_(copy.deepcopy(net), keys)["left"].any()
    before = copy.deepcopy(net.state_dict())
    bad: list[tuple[Any, str]] = [
        ([], "expected at least one key set, got an empty list"),
        ([three, five, three], "two key sets of one size, 3×3; give one"),
        ([three.filters], "got a ndarray; type for example KeySet.from_filters"),
        (three.filters, "got a ndarray"),
        (None, "got a NoneType"),
        ([three, "keys"], "got a str"),
        ({"0": [three]}, "got a list"),
        ("keys", "keys must be a KeySet or 'idealized', got 'keys'"),
    ]
    for keys, message in bad:
        with pytest.raises(kf.KeyFiltersError, match=message):
            kf.replace_filters_(net, keys)
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())


def test_arrays_are_written_in_place_or_left_alone(tmp_path: Path) -> None:
    model = {"stem.weight": np.ones((8, 3, 3, 3), "f4")}
    model["dw.weight"] = np.random.default_rng(0).normal(size=(8, 1, 3, 3)).astype("f4")
    model["fixed.weight"] = model["dw.weight"] + 1
    before = {name: x.copy() for name, x in model.items()}
    keys = KeySet.random(4, size=3)
    torch.save({"state_dict": model}, tmp_path / "a.pth")
    replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", keys)
    saved = torch.load(tmp_path / "b.pth", weights_only=False)["state_dict"]
    model["fixed.weight"].flags.writeable = False
    report = replace_filters_(model, keys).set_index("layer")
    assert report["left"]["dw"] == "" and "copy" in report["left"]["fixed"]
    assert not np.array_equal(model["dw.weight"], before["dw.weight"])
    np.testing.assert_array_equal(model["fixed.weight"], before["fixed.weight"])
    np.testing.assert_array_equal(saved["dw.weight"], model["dw.weight"])


def test_names_with_brackets_and_a_progress_that_stops() -> None:
    convs = {f"conv[{k}x{k}]": nn.Conv2d(8, 8, k, groups=8) for k in (3, 5)}
    model = nn.Sequential(OrderedDict(convs))
    before = {name: x.clone() for name, x in model.state_dict().items()}

    def stop(name: str) -> None:
        if name == "conv[5x5]":
            raise KeyboardInterrupt

    sets = [KeySet.random(4, size=k) for k in (3, 5)]
    with pytest.raises(KeyboardInterrupt):
        replace_filters_(model, sets, progress=stop)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    report = replace_filters_(model, sets, layers=["conv[3x3]"]).set_index("layer")
    assert report["left"]["conv[3x3]"] == ""


def test_a_reason_that_layers_share_is_told_once() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, groups=8) for _ in range(9)))
    with pytest.raises(kf.KeyFiltersError) as told:
        kf.initialize_filters_(model, "idealized")
    assert "0, 1, 2 and 6 more layers: " in str(told.value)
    assert str(told.value).count("bank=") == 1

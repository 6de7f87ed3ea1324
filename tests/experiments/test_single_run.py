from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import Shared
from keyfilters.experiments.run_parts import build_network, load, recipe_of
from keyfilters.experiments.single_run import MODEL, forget, make_run, single_run
from keyfilters.training import normalise
from tests.experiments.experiments import DATA

SMALL = Shared(width=8, depth=1, size=3, epochs=2.0, device="cpu")


def options(**own: Any) -> dict[str, Any]:
    return SMALL.options(data=DATA, **own)


def built(seed: int = 0, **own: Any) -> torch.nn.Module:
    given = options(**own)
    return build_network(given, load(given, seed), seed)


def test_first_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    states = [built(seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    assert not all(torch.equal(x, states[2][name]) for name, x in states[0].items())


@pytest.mark.parametrize(("side", "places"), [(8, 8), (16, 8), (28, 14), (32, 8)])
def test_networks_see_eight_to_fifteen_places_along_a_side(side: int, places: int) -> None:
    network, seen = built(resolution=side), list[torch.Size]()
    [conv] = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    conv.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    network.eval()(torch.zeros(1, 1, side, side))
    assert seen[0][-1] == places


def test_any_network_with_its_kernel_size_and_options() -> None:
    assert list(kf.read(built(size=7)).sizes) == [(7, 7)]
    text = "convnext_atto?patch_size=2&depths=1,1,1,1&dims=8,16,24,32"
    network = built(network=text, size=5)
    assert list(kf.read(network).sizes) == [(5, 5)] and len(kf.read(network)) == 80
    assert network.stem[0].kernel_size == (2, 2)  # type: ignore[index, union-attr]
    assert built(network="test_vit?img_size=8&patch_size=4", size=5).patch_embed.num_patches == 4
    for own, words in (
        ({"network": "test_vit", "size": 7}, "kernel size of test_vit cannot be chosen"),
        ({"network": "convmixer?with=3"}, "options width, depth and size"),
        ({"width": 8.5}, "whole numbers"),
    ):
        with pytest.raises(KeyFiltersError, match=words):
            built(**own)


def test_first_filters_of_a_given_size() -> None:
    drawn = [kf.read(built(seed, std=0.02, width=64)).stack(3)[0] for seed in (0, 0, 1)]
    assert drawn[0].std() == pytest.approx(0.02, rel=0.15)
    assert kf.read(built(width=64)).stack(3)[0].std() > 0.05
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_recipe_and_changes_count_before_the_options() -> None:
    own = {"recipe": {"optimiser": {"lr": 0.5}, "augmentation": {"flip": True}}}
    recipe = recipe_of({**options(), **own, "changes": {"schedule": {"steps": 3}}}, 4, 100)
    assert (recipe.seed, recipe.optimiser.lr, recipe.schedule.steps) == (4, 0.5, 3)
    assert recipe.augmentation.flip and recipe.optimiser.weight_decay == 0.05
    assert recipe_of(options(), 0, 100).schedule.warmup_epochs == 0.5


def test_all_test_images_are_measured(tmp_path: Path) -> None:
    found = single_run(options(before=True), 0, tmp_path)
    data, network = load(options(), 0), built()
    start = network.eval()(normalise(data.test_images, data.mean, data.std)).argmax(1)
    network.load_state_dict(load_file(tmp_path / MODEL))
    end = network.eval()(normalise(data.test_images, data.mean, data.std)).argmax(1)
    for name, answers in (("before", start), ("top1", end)):
        right = 100 * float((answers == data.test_labels).double().mean())
        assert found[name] == pytest.approx(right)
    assert len(found["curve"]) == 2 and found["parameters"] == found["trainable"]


def test_filters_on_keys_stay_there_and_become_plain(tmp_path: Path) -> None:
    found = single_run(options(treatment="keys?keys=random:4&learn=bias"), 1, tmp_path)
    filters = kf.read(tmp_path / MODEL).stack(3)[0]
    keys = kf.KeySet.random(4, 3, 1)
    _, _, b, residual = keys.assign(filters)
    assert np.abs(residual).max() < 1e-6 and np.abs(b).max() > 0
    assert found["trainable"] == found["parameters"], (
        "a, key and sign are buffers; b is a parameter"
    )
    assert set(load_file(tmp_path / MODEL)) == set(built().state_dict())


@pytest.mark.parametrize("layers", ["depthwise", "pointwise"])
def test_weights_are_borrowed_and_kept(tmp_path: Path, layers: str) -> None:
    lender = tmp_path / "lender"
    single_run(options(), 1, lender)
    weights = {"layers": layers, "source": "@lender", "freeze": True}
    given = options(weights=weights, sources={"lender": str(lender)})
    single_run(given, 0, tmp_path / "borrower")
    theirs, ours = (load_file(x / MODEL) for x in (lender, tmp_path / "borrower"))
    same = {name for name, x in ours.items() if x.ndim == 4 and torch.equal(x, theirs[name])}
    expected = (lambda size: size == 3) if layers == "depthwise" else (lambda size: size == 1)
    assert same == {name for name, x in ours.items() if x.ndim == 4 and expected(x.shape[-1])}


def test_weights_of_a_folder_that_is_no_run_are_borrowed(tmp_path: Path) -> None:
    lender = built(3)
    save_file(lender.state_dict(), tmp_path / MODEL)
    weights = {"layers": "depthwise", "source": str(tmp_path), "freeze": True}
    single_run(options(weights=weights), 0, tmp_path / "borrower")
    ours = kf.read(tmp_path / "borrower" / MODEL).stack(3)[0]
    np.testing.assert_array_equal(ours, kf.read(lender).stack(3)[0])


def test_frozen_weights_that_move_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = single_run.__globals__["train"]

    def careless(recipe: Any, out: Path, *, model: torch.nn.Module, **more: Any) -> Any:
        trained = train(recipe, out, model=model, **more)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 1e-3
        return trained

    monkeypatch.setattr("keyfilters.experiments.single_run.train", careless)
    weights = {"layers": "depthwise", "freeze": True}
    with pytest.raises(KeyFiltersError, match="frozen, but moved"):
        single_run(options(weights=weights), 0, tmp_path)


def test_a_recipe_counts_but_for_its_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'seed = 9\n[model]\nname = "test_vit"\n[data]\nsamples = 7\n'
        "[optimiser]\nlr = 0.5\n[batch]\nsize = 8\n"
    )
    given = replace(SMALL, recipe=str(path)).options(data=DATA)
    assert given["recipe"] == {"optimiser": {"lr": 0.5}, "batch": {"size": 8}}
    recipe = recipe_of(given, 4, 100)
    assert (recipe.seed, recipe.optimiser.lr, recipe.batch.size) == (4, 0.5, 8)
    path.write_text("[optimiser]\nrl = 0.5\n")
    with pytest.raises(KeyFiltersError, match="'rl'"):
        replace(SMALL, recipe=str(path)).options(data=DATA)


def test_frozen_filters_of_a_source_and_their_control(tmp_path: Path) -> None:
    single_run(options(), 1, tmp_path / "lender")
    theirs = kf.read(tmp_path / "lender" / MODEL).stack(3)[0]
    sources = {"lender": str(tmp_path / "lender")}
    for control in ("", "&control=tap-shuffled"):
        text = f"transfer?from=@lender&freeze=1{control}"
        folder = tmp_path / (control or "plain")
        single_run(options(treatment=text, sources=sources), 0, folder)
        ours = kf.read(folder / MODEL).stack(3)[0]
        assert np.array_equal(ours, theirs) is not bool(control)
        flat = (np.sort(x.reshape(8, 9), 1) for x in (ours, theirs))
        np.testing.assert_allclose(*flat, rtol=1e-6)


def test_labels_are_spoiled() -> None:
    whole = {"data": "digits"}
    data, half = (load({**whole, **own}, 0) for own in ({}, {"samples": 0.5, "noise": 0.4}))
    assert len(half.images) == round(len(data.images) / 2)
    true = {x.numpy().tobytes(): int(y) for x, y in zip(data.images, data.labels, strict=True)}
    wrong = [
        true[x.numpy().tobytes()] != int(y) for x, y in zip(half.images, half.labels, strict=True)
    ]
    assert np.mean(wrong) == pytest.approx(0.4 * 0.9, abs=0.05)


@pytest.mark.parametrize("more", ["", "&assign_from=@lender"])
def test_a_run_is_known_by_the_content_of_what_it_names(tmp_path: Path, more: str) -> None:
    file = tmp_path / "keys.npz"
    keys = []
    for seed in (0, 0, 1):
        kf.KeySet.random(4, 3, seed).save(file)
        forget()
        keys.append(make_run({}, 0, options(treatment=f"keys?keys={file}{more}")).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"data": "digits?sample=3"}, "options samples, classes, root, not 'sample'"),
        ({"data": "digit"}, "no data set is called 'digit'"),
        ({"data": "digits?samples=10"}, "fewer than a batch"),
        ({"treatment": "kees"}, "'kees' cannot be done"),
        ({"weights": {"layers": "pointwise"}, "network": "convnext_tiny?dims=8,8,8,8&patch_size=2",
          "resolution": 32}, "no pointwise layers"),
        ({"changes": {"optimiser": {"lr": -1}}}, "lr"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_run(own: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        make_run({}, 0, {**options(), **own})

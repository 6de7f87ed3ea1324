"""Training: what it learns, what stays, what is refused, and that it continues where it was."""

from __future__ import annotations

import copy
import errno
import json
import random
from dataclasses import replace
from importlib.metadata import version
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.utils import is_tensorboard_available
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.training import (
    Data,
    Recipe,
    Trained,
    load_data,
    make_model,
    normalise,
    train,
)
from keyfilters.training.batches import Batches
from keyfilters.training.processes import make_accelerator, own_accelerate, own_threads
from keyfilters.training.run import Run
from tests.training.networks import network, recipe

EVERYTHING = {
    "augmentation": {"crop": 1, "flip": True, "mixup": 0.2, "cutmix": 1.0, "erasing": 0.2,
                     "label_smoothing": 0.1},
    "ema": {"decay": 0.99},
    "optimiser": {"lr": 3e-3, "clip": 1.0},
    "schedule": {"epochs": 2, "warmup_epochs": 0.5, "min_lr": 1e-4},
    "batch": {"size": 64, "accumulation": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Data:
    """Six batches an epoch."""
    return load_data("digits", samples=400)


def run(made: Recipe, data: Data, out: Path | None = None, **options: Any) -> Trained:
    model = options.pop("model", None) or network(dropout=0.2)
    return train(made, out, model=model, data=data, device="cpu", **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_the_digits(tmp_path: Path) -> None:
    digits = load_data("digits")
    seen: list[tuple[int, int, str]] = []
    made = recipe(schedule={"epochs": 6})
    trained = run(made, digits, tmp_path, progress=lambda *step: seen.append(step))
    history = trained.history
    assert list(history) == [
        *("epoch", "step", "lr", "train_loss", "seconds", "test_loss", "test_top1")
    ]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6] and history["step"].iloc[-1] == 132
    assert history["test_top1"].iloc[:-1].isna().all(), "looked at once"
    assert history["test_top1"].iloc[-1] > 0.93 and history["train_loss"].iloc[-1] < 0.3
    assert not trained.model.training and trained.ema is None
    with torch.no_grad():
        z = trained.model(normalise(digits.test_images, digits.mean, digits.std))
    top1 = float((z.argmax(1) == digits.test_labels).double().mean())
    assert top1 == pytest.approx(history["test_top1"].iloc[-1])
    assert functional.cross_entropy(z, digits.test_labels).item() == pytest.approx(
        trained.summary["test_loss"], rel=1e-5
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        *("checkpoint-132", "metrics.jsonl", "model.safetensors", "recipe.toml", "summary.json")
    }
    assert Recipe.load(tmp_path / "recipe.toml") == made
    lines = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    pd.testing.assert_frame_equal(lines, history, check_dtype=False)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in trained.model.state_dict().items())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["environment"]["torch"] == version("torch") and summary["processes"] == 1
    assert summary["environment"]["threads"] == torch.get_num_threads()
    assert summary["data"]["name"] == "digits" and summary["trainable"] == summary["parameters"]
    assert all(count == 132 and what.startswith("epoch ") for _, count, what in seen)


def test_against_a_loop_by_hand(digits: Data) -> None:
    made = recipe(optimiser={"lr": 3e-3, "clip": 0.5}, schedule={"steps": 25, "warmup_epochs": 1})
    trained = run(made, digits, model=network())
    model = network()
    vectors = [x for x in model.parameters() if x.ndim < 2]
    others = [x for x in model.parameters() if x.ndim >= 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.05}]
    optimiser = torch.optim.AdamW(groups, lr=1.0)
    with own_accelerate():
        batches = Batches(made, digits, make_accelerator(made, "cpu"))
        seen = [batch for epoch in range(5) for batch in batches.epoch(epoch)]
    for step, (x, y) in enumerate(seen[:25]):
        rate = 3e-3 * min((step + 1) / 6, 0.5 * (1 + cos(pi * max(step - 5, 0) / 20)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
    for one, other in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_everything_runs_repeats_and_depends_on_the_seed(digits: Data) -> None:
    made = recipe(**EVERYTHING)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = run(made, digits)
    drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.rand(7)
    again = run(made, digits)
    assert first.ema is not None and again.ema is not None
    assert same(first.model, again.model) and same(first.ema, again.ema)
    assert not same(first.model, first.ema)
    assert first.history["ema_top1"].iloc[-1] > 0.15
    assert not same(first.model, run(replace(made, seed=1), digits).model)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert drawn[1:] == (random.random(), np.random.rand())  # noqa: NPY002


def test_ema_is_the_mean_of_the_weights(digits: Data) -> None:
    made = recipe(schedule={"steps": 2}, ema={"decay": 0.75, "warmup": False})
    trained = run(made, digits, model=network())
    once = run(replace(made, schedule=replace(made.schedule, steps=1)), digits, model=network())
    # The cosine differs between one step and two, not at the first.
    assert trained.ema is not None
    pairs = zip(
        trained.ema.parameters(), once.model.parameters(), trained.model.parameters(), strict=True
    )
    for mean, first, second in pairs:
        torch.testing.assert_close(mean, 0.75 * first + 0.25 * second)


def test_accumulation_equals_the_whole_batch(digits: Data) -> None:
    whole = run(recipe(batch={"size": 64}), digits, model=network())
    parts = run(recipe(batch={"size": 64, "accumulation": 4}), digits, model=network())
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    losses = [x.history["train_loss"].to_numpy() for x in (whole, parts)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.8}, {"weight_decay": 0.0}])
def test_frozen_parameters_do_not_move(digits: Data, options: dict[str, Any]) -> None:
    model = network(batchnorm=True)
    model[1].weight.requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained = run(recipe(optimiser={"lr": 0.01, **options}), digits, model=model)
    assert trained.model is model
    unmoved = {k for k, x in model.state_dict().items() if torch.equal(x, before[k])}
    assert unmoved == {"1.weight"}
    assert trained.summary["parameters"] - trained.summary["trainable"] == 16 * 9


class StopError(Exception):
    pass


def before(step: int, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Do something in the next training before a step."""
    original = Run._part

    def part(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.step == step:
            act()
        return original(self, x, y)

    monkeypatch.setattr(Run, "_part", part)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the next training before a step."""

    def stop() -> None:
        raise StopError

    before(step, monkeypatch, stop)


@pytest.fixture(scope="module")
def uninterrupted(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(recipe(**EVERYTHING), digits, folder), folder


@pytest.mark.parametrize("step", [3, 5, 6, 11])
def test_interrupted_is_as_if_it_never_was(
    digits: Data,
    uninterrupted: tuple[Trained, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    made = recipe(**EVERYTHING, checkpoint={"steps": 4})
    whole, folder = uninterrupted
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(StopError):
            run(made, digits, tmp_path / "cut")
    resumed = run(made, digits, tmp_path / "cut")
    assert same(whole.model, resumed.model)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    pd.testing.assert_frame_equal(
        whole.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"),
        check_exact=True,
    )  # fmt: skip


@pytest.mark.parametrize("policy", [{}, {"select": "last"}])
def test_interrupted_with_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: dict[str, str]
) -> None:
    data = load_data("digits", samples=128, validation=0.2)
    schedule = {"epochs": 3, **policy}
    made = recipe(ema={"decay": 0.9}, schedule=schedule, optimiser={"lr": 0.03})
    made = replace(made, checkpoint=replace(made.checkpoint, steps=3))
    whole = run(made, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(StopError):
            run(made, data, tmp_path / "cut")
    resumed = run(made, data, tmp_path / "cut")
    assert whole.ema is not None and resumed.ema is not None
    assert same(whole.model, resumed.model) and same(whole.ema, resumed.ema)
    history = whole.history.drop(columns="seconds")
    pd.testing.assert_frame_equal(
        history, resumed.history.drop(columns="seconds"), check_exact=True
    )
    rank = list(zip(-history["val_top1"], history["val_loss"], strict=True))
    best = 2 if policy else rank.index(min(rank))
    assert whole.summary["best_epoch"] == resumed.summary["best_epoch"] == best + 1


def test_the_best_epoch_is_kept_and_tested(digits: Data) -> None:
    """The learning rate of the last epoch ruins the network."""
    held = replace(
        digits, validation_images=digits.images[:99], validation_labels=digits.labels[:99]
    )
    made = recipe(schedule={"epochs": 4}, optimiser={"lr": 3e-3})

    class Ruined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += self.training
            return self.inner(x) * (1 - 2 * (self.seen > 18))

    trained = run(made, held, model=Ruined())
    top1 = trained.history["val_top1"]
    assert trained.summary["best_epoch"] == 3 and top1.iloc[3] < 0.3 < top1.iloc[2]
    with torch.no_grad():
        z = trained.model(normalise(held.test_images, held.mean, held.std))
    found = float((z.argmax(1) == held.test_labels).double().mean())
    assert found == pytest.approx(trained.summary["test_top1"]) and found > 0.3
    last = run(replace(made, schedule=replace(made.schedule, select="last")), held, model=Ruined())
    assert last.summary["best_epoch"] == 4 and last.summary["test_top1"] < 0.3


def test_a_run_continues_with_its_number_of_threads(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(checkpoint={"steps": 4})
    with own_threads(1):
        whole = run(made, digits)
        with monkeypatch.context() as patch:
            stop_at(7, patch)
            with pytest.raises(StopError):
                run(made, digits, tmp_path)
    with own_threads(2):
        seen: list[int] = []
        before(8, monkeypatch, lambda: seen.append(torch.get_num_threads()))
        resumed = run(made, digits, tmp_path)
        assert torch.get_num_threads() == 2
    assert seen == [1] and resumed.summary["environment"]["threads"] == 1
    assert same(whole.model, resumed.model)


def test_a_finished_run_is_only_read(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(ema={"decay": 0.9})
    trained = run(made, digits, tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    stop_at(0, monkeypatch)
    again = run(made, digits, tmp_path)
    assert same(trained.model, again.model) and again.ema is not None
    assert again.summary == trained.summary and not again.model.training
    pd.testing.assert_frame_equal(again.history, trained.history)
    assert times == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_weights_of_single_steps_are_kept(digits: Data, tmp_path: Path) -> None:
    made = recipe(schedule={"steps": 4}, checkpoint={"steps": 1, "keep": [0, 3, 4, 99]})
    first = network(dropout=0.2)
    model = copy.deepcopy(first)
    trained = run(made, digits, tmp_path, model=model)
    names = sorted(p.name for p in tmp_path.glob("step-*"))
    assert names == ["step-0.safetensors", "step-3.safetensors", "step-4.safetensors"]
    kept = {name: load_file(tmp_path / name) for name in names}
    for name, net in (("step-0.safetensors", first), ("step-4.safetensors", trained.model)):
        assert all(torch.equal(kept[name][k], v) for k, v in net.state_dict().items())
    shorter = recipe(schedule={"steps": 4}, checkpoint={"keep": [3]})
    other = run(shorter, digits, model=copy.deepcopy(first))
    assert same(other.model, trained.model), "keeping weights changes nothing"


def test_a_folder_of_another_run_is_refused(digits: Data, tmp_path: Path) -> None:
    made = recipe(schedule={"steps": 2})
    run(made, digits, tmp_path)
    with pytest.raises(KeyFiltersError, match=r"schedule.steps \(there 2, asked 3\)"):
        run(recipe(schedule={"steps": 3}), digits, tmp_path)
    with pytest.raises(KeyFiltersError, match=r"network.state \(there "):
        run(made, digits, tmp_path, model=network(seed=1))
    with pytest.raises(KeyFiltersError, match=r"images.training \(there \[400, 1, 8, 8\]"):
        run(made, load_data("digits", samples=399), tmp_path)
    exchanged = replace(digits, test_images=digits.test_images.flip(3))
    with pytest.raises(KeyFiltersError, match=r"differs in images.test_crc32 \(there "):
        run(made, exchanged, tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(checkpoint={"steps": 5}, schedule={"steps": 20})
    whole = run(made, digits)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        fsync = "keyfilters.training.checkpoints.os.fsync"
        before(12, patch, lambda: patch.setattr(fsync, refuse))
        with pytest.raises(KeyFiltersError, match=r"No space left .*last good"):
            run(made, digits, tmp_path)
    assert [x.name for x in tmp_path.glob("checkpoint-*")] == ["checkpoint-10"]
    assert same(whole.model, run(made, digits, tmp_path).model)


def test_a_loss_that_is_not_finite_stops_at_its_step(digits: Data, tmp_path: Path) -> None:
    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = network(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += self.training
            return self.inner(x) * (float("nan") if self.seen == 9 else 1)

    message = (
        r"the loss is nan at step 9 of the recipe \(convnextv2_atto on digits, adamw, lr 0.003"
    )
    with pytest.raises(KeyFiltersError, match=message):
        run(recipe(checkpoint={"steps": 4}), digits, tmp_path, model=Poisoned())
    assert (tmp_path / "checkpoint-8").is_dir()


def test_models_by_name_are_a_function_of_the_seed(digits: Data) -> None:
    model = {"name": "test_convnext", "options": {"patch_size": 1}}
    made = recipe(model=model, schedule={"steps": 2}, optimiser={"layer_decay": 0.7})
    one, other = (train(made, data=digits, device="cpu") for _ in range(2))
    assert same(one.model, other.model)
    assert not same(make_model(made, digits), make_model(replace(made, seed=1), digits))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_and_layout(digits: Data, precision: str) -> None:
    made = recipe(precision=precision, channels_last=True, schedule={"epochs": 6})
    trained = run(made, digits, model=network(batchnorm=True))
    assert trained.history["test_top1"].iloc[-1] > 0.7
    assert all(x.dtype == torch.float32 for x in trained.model.parameters())
    assert all(x.is_contiguous() for x in trained.model.parameters())
    assert "forward" not in vars(trained.model)  # accelerate's wrapper is gone
    assert trained.model(torch.zeros(2, 1, 8, 8)).dtype == torch.float32


def test_a_forward_method_of_the_model_s_own_stays(digits: Data) -> None:
    model = network()
    model.forward = own = type(model).forward.__get__(model)  # type: ignore[method-assign]
    trained = run(recipe(schedule={"steps": 2}), digits, model=model)
    assert vars(trained.model)["forward"] == own
    plain = run(recipe(schedule={"steps": 2}), digits, model=network())
    assert same(trained.model, plain.model)


def test_the_scale_of_losses_continues(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaling(made: Recipe, device: str | None, out: Path | None) -> Any:
        accelerator = make_accelerator(made, device, out)
        accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=3)  # as fp16 on a GPU
        return accelerator

    monkeypatch.setattr("keyfilters.training.loop.make_accelerator", scaling)
    made = recipe(optimiser={"clip": 1.0}, checkpoint={"steps": 4})
    whole = run(made, digits)
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(StopError):
            run(made, digits, tmp_path)
    scaler = torch.load(tmp_path / "checkpoint-4" / "scaler.pt", weights_only=True)
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2 * 65536, 1)
    assert same(whole.model, run(made, digits, tmp_path).model)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # of Python 3.13.0
def test_compiled_is_the_same_model(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyfilters.training.processes.COMPILER", "eager")  # needs no compiler
    made = recipe(compile=True, ema={"decay": 0.9})
    model = network()
    trained = run(made, digits, model=model)
    assert trained.model is model and type(model) is nn.Sequential
    plain = run(replace(made, compile=False), digits, model=network())
    for one, other in zip(model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_that_are_not_finite_in_the_end(digits: Data) -> None:
    made = recipe(optimiser={"lr": 1e30}, schedule={"steps": 1})
    with pytest.raises(KeyFiltersError, match="answers to test images are not finite after step 1"):
        run(made, digits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nn.Flatten()}, "nothing to train|gives"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 9))}, r"gives \(9,\) .*10 logits"),
        ({"model": nn.Conv2d(3, 10, 3)}, r"cannot take images of \(1, 8, 8\): .*set data.resol"),
        ({"model": nn.LSTM(8, 8)}, "cannot take images|gives"),
    ],
)
def test_models_that_do_not_fit(digits: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        run(recipe(), digits, **options)


def test_batch_normalisation_of_one_image(digits: Data) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 8), nn.BatchNorm2d(10), nn.Flatten())
    with pytest.raises(KeyFiltersError, match=r"batch\.size is 1 in 1 parts: set a larger one"):
        run(recipe(batch={"size": 1}), digits, model=net)


def test_what_the_user_can_mend(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        KeyFiltersError, match="no model 'test_convnxt'; the nearest names are: test"
    ):
        train(recipe(model={"name": "test_convnxt"}), data=digits, device="cpu")
    with pytest.raises(KeyFiltersError, match=r"does not take model.options \{'colour': 1\}"):
        options = {"name": "test_convnext", "options": {"colour": 1}}
        train(recipe(model=options), data=digits, device="cpu")
    with pytest.raises(KeyFiltersError, match="fp16 needs a GPU; set precision to bf16 or no"):
        train(recipe(precision="fp16"), model=network(), data=digits, device="cpu")
    with pytest.raises(KeyFiltersError, match="there is no xpu; accelerate offers cpu"):
        train(recipe(), model=network(), data=digits, device="xpu")
    with pytest.raises(KeyFiltersError, match=r"there is no cuda:99 \(.*\); type cpu"):
        train(recipe(), model=network(), data=digits, device="cuda:99")
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"training needs an extra .*keyfilters\[train\]"):
        train(recipe(), model=network(), data=digits)


def test_missing_trackers_are_named(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(schedule={"steps": 2}, checkpoint={"log_with": ["tensorbord"]})
    with pytest.raises(KeyFiltersError, match="tensorbord"):
        run(made, digits, tmp_path)
    made = recipe(schedule={"steps": 2}, checkpoint={"log_with": ["tensorboard"]})
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(KeyFiltersError, match="pip install tensorboard"):
        run(made, digits, tmp_path)


@pytest.mark.skipif(not is_tensorboard_available(), reason="needs tensorboard")
def test_trackers(digits: Data, tmp_path: Path) -> None:
    made = recipe(schedule={"steps": 2}, checkpoint={"log_with": ["tensorboard"]})
    plain = run(replace(made, checkpoint=replace(made.checkpoint, log_with=())), digits)
    assert same(run(made, digits, tmp_path).model, plain.model)
    assert list((tmp_path / "keyfilters").rglob("events*"))
    with pytest.raises(KeyFiltersError, match="--out"):
        run(made, digits)

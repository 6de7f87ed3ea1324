"""Runs in processes of their own: killed and continued, and two that share the batches."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.surgery import freeze_filters_
from keyfilters.training import (
    Recipe,
    Trained,
    accuracy,
    load_data,
    make_model,
    normalise,
    train,
)
from keyfilters.training.processes import keep_own_buffers_, require_used, synchronise_
from tests.training.test_streaming import write_folder

RECIPE = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
samples = 128
classes = [0, 1, 2]
validation = 0.1
[optimiser]
lr = 2e-3
clip = 1.0
[batch]
size = 32
"""
KILLED = """
[augmentation]
crop = 1
mixup = 0.2
cutmix = 1.0
erasing = 0.2
[ema]
decay = 0.9
[checkpoint]
steps = 1
"""
STREAMED = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
name = "imagefolder:FOLDER"
resolution = 16
stream = true
workers = 1
validation = 0.1
[augmentation]
scale = 0.3
auto_augment = "rand-m9-mstd0.5-inc1"
flip = true
[optimiser]
lr = 1e-3
clip = 1.0
[batch]
size = 10
"""
SHARED = """
[schedule]
epochs = 2
"""
BATCHNORM = """
import sys
import torch
from torch import nn
from keyfilters.training import Recipe, train

class Net(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8, momentum=None)  # the mean of all that it has seen
        self.head = nn.Linear(8 * 64, 3)
        if unused:
            self.aux = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

torch.manual_seed(0)
trained = train(Recipe.load(sys.argv[1]), sys.argv[2], model=Net(len(sys.argv) > 3), device="cpu")
"""


def start(command: list[object], **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def training(recipe: Path, out: Path) -> list[object]:
    return ["-m", "keyfilters", "train", recipe, "--out", out, "--device", "cpu"]


def start_two(command: list[object]) -> list[subprocess.Popen[bytes]]:
    """Start two processes as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    return [start(command, **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def run_two(command: list[object]) -> None:
    two = start_two(command)
    errors = [process.communicate(timeout=180)[1].decode() for process in two]
    assert [process.returncode for process in two] == [0, 0], errors


def kill_at(step: int, out: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill processes once a step is saved, with signal 9."""
    deadline = time.monotonic() + 120
    while not any(out.glob(f"checkpoint-{step}*")) and time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.002)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
def test_killed_and_continued_gives_the_same_bytes(tmp_path: Path, epochs: int) -> None:
    path, cut, whole = tmp_path / "recipe.toml", tmp_path / "cut", tmp_path / "whole"
    path.write_text(f"{RECIPE}{KILLED}[schedule]\nepochs = {epochs}\n")
    step = random.SystemRandom().randrange(1, 4 * epochs)
    kill_at(step, cut, [start(training(path, cut), OMP_NUM_THREADS=str(torch.get_num_threads()))])
    for out in (cut, whole):
        train(Recipe.load(path), out, device="cpu")
    for name in ("model.safetensors", "ema.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), f"killed at {step}"


def assert_nearly(one: Trained, two: Path) -> None:
    """The run in one process, and the folder of that in two."""
    weights = load_file(two / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name].float(), value.float(), atol=2e-4, rtol=1e-3)
    history = pd.read_json(two / "metrics.jsonl", lines=True)
    for column in ("train_loss", "val_loss", "val_top1", "test_loss", "test_top1"):
        found = history[column].tolist()
        assert found == pytest.approx(one.history[column].tolist(), abs=5e-3, nan_ok=True)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_are_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + SHARED)
    one = train(Recipe.load(path), device="cpu")
    run_two(training(path, tmp_path / "two"))
    assert_nearly(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_are_as_one_with_batch_normalisation(tmp_path: Path) -> None:
    """One process that computes the two halves of each batch one after the other."""
    path, script, whole = tmp_path / "recipe.toml", tmp_path / "net.py", tmp_path / "one"
    path.write_text(RECIPE + SHARED)
    script.write_text(BATCHNORM)
    halves = tmp_path / "halves.toml"
    halves.write_text((RECIPE + SHARED).replace("size = 32", "size = 32\naccumulation = 2"))
    process = start([script, halves, whole])
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    two = tmp_path / "two processes"
    run_two([script, path, two])
    one, other = load_file(whole / "model.safetensors"), load_file(two / "model.safetensors")
    for name in one:
        if name != "norm.num_batches_tracked":
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)
    files = [pd.read_json(out / "metrics.jsonl", lines=True) for out in (whole, two)]
    for column in ("train_loss", "val_loss", "test_loss"):
        values = [history[column].tolist() for history in files]
        assert values[0] == pytest.approx(values[1], abs=1e-4, nan_ok=True)

    cut = tmp_path / "cut"
    often = tmp_path / "often.toml"
    often.write_text(RECIPE + SHARED + "[checkpoint]\nsteps = 1\n")
    kill_at(3, cut, start_two([script, often, cut]))
    run_two([script, often, cut])
    assert (cut / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_what_is_measured_is_the_model_that_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "two"
    path.write_text(RECIPE.replace("test_convnext", "test_efficientnet").replace(
        "options = { patch_size = 1 }", ""
    ) + "[schedule]\nepochs = 1\n")  # fmt: skip
    run_two(training(path, out))
    recipe = Recipe.load(path)
    data = load_data(**recipe.to_dict()["data"])
    model = make_model(recipe, data)
    model.load_state_dict(load_file(out / "model.safetensors"))
    images = normalise(data.test_images, data.mean, data.std)
    found = accuracy(model, [(images, data.test_labels)], topk=(1,))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert summary["test_top1"] == pytest.approx(found["top1"])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_unused_parameters_are_named(tmp_path: Path) -> None:
    path, script = tmp_path / "recipe.toml", tmp_path / "net.py"
    path.write_text(RECIPE + SHARED)
    script.write_text(BATCHNORM)
    two = start_two([script, path, tmp_path / "out", "unused"])
    errors = [process.communicate(timeout=180)[1].decode() for process in two]
    assert all("aux.weight, aux.bias; call requires_grad_(False)" in error for error in errors)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_a_stream(tmp_path: Path) -> None:
    folder, path = write_folder(tmp_path / "images"), tmp_path / "recipe.toml"
    damaged = [folder / name for name in ("train/blue/3.png", "train/red/4.jpg", "val/red/1.jpg")]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:200])
    path.write_text(STREAMED.replace("FOLDER", folder.as_posix()) + SHARED)
    one = train(Recipe.load(path, "data.workers=0"), device="cpu")
    run_two(training(path, tmp_path / "two"))
    assert_nearly(one, tmp_path / "two")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["data"] == json.loads(json.dumps(one.summary["data"]))
    named = {name for name, _ in summary["data"]["skipped"]}
    assert named <= {file.relative_to(folder).as_posix() for file in damaged} and named


def test_parameters_without_a_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    net(torch.ones(1, 2)).sum().backward()
    require_used(net)
    net[1].requires_grad_(True)
    with pytest.raises(KeyFiltersError, match=r"1.weight, 1.bias.*requires_grad_\(False\)"):
        require_used(net)


def test_hooks_survive_synchronised_batch_normalisation() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    freeze_filters_(net, batchnorm="eval")
    made = synchronise_(net, torch.device("meta"))
    assert [type(x) for x in made[1:]] == [nn.SyncBatchNorm] * 2
    assert made[1]._forward_pre_hooks and not made[2]._forward_pre_hooks
    made.train()
    before = made[1].running_mean.clone()
    made(torch.randn(4, 8, 5, 5))
    assert torch.equal(before, made[1].running_mean)
    assert not torch.equal(before, made[2].running_mean)
    with pytest.raises(KeyFiltersError, match="needs GPUs"):
        synchronise_(net, torch.device("cpu"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_each_process_keeps_the_statistics_of_what_it_sees(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.BatchNorm2d(3)))
        plain = nn.Sequential(nn.BatchNorm2d(3))
        assert net.broadcast_buffers
        for runner in (net, plain):
            keep_own_buffers_(runner)
        assert not net.broadcast_buffers and not hasattr(plain, "broadcast_buffers")
    finally:
        torch.distributed.destroy_process_group()

"""Runs in processes of their own: killed and continued, and two that share the batches."""

from __future__ import annotations

import json
import os
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

from keyfilters.training import Recipe, Trained, train
from tests.training.test_streaming import write_folder

RECIPE = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
samples = 128
classes = [0, 1, 2]
[optimiser]
lr = 2e-3
clip = 1.0
[batch]
size = 32
"""
KILLED = """
[schedule]
epochs = 6
[augmentation]
crop = 1
mixup = 0.2
cutmix = 1.0
erasing = 0.2
[ema]
decay = 0.9
[checkpoint]
steps = 3
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
[augmentation]
scale = 0.3
auto_augment = "rand-m9-mstd0.5-inc1"
flip = true
[optimiser]
lr = 1e-3
clip = 1.0
[batch]
size = 12
"""
SHARED = """
[schedule]
epochs = 2
"""


def start(recipe: Path, out: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "keyfilters", "train", recipe, "--out", out, "--device", "cpu"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_bytes(tmp_path: Path) -> None:
    path, cut, whole = tmp_path / "recipe.toml", tmp_path / "cut", tmp_path / "whole"
    path.write_text(RECIPE + KILLED)
    process = start(path, cut, OMP_NUM_THREADS=str(torch.get_num_threads()))
    deadline = time.monotonic() + 60
    while not (cut / "metrics.jsonl").exists():  # one of six epochs is done
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = torch.load(cut / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 24 and not state["finished"]
    assert not (cut / "model.safetensors").exists()

    recipe = Recipe.load(path)
    train(recipe, cut, device="cpu")
    train(recipe, whole, device="cpu")
    for name in ("model.safetensors", "ema.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def run_two(recipe: Path, out: Path) -> None:
    """Train in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    two = [start(recipe, out, **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    errors = [process.communicate(timeout=180)[1].decode() for process in two]
    assert [process.returncode for process in two] == [0, 0], errors


def assert_nearly(one: Trained, two: Path) -> None:
    """The run in one process, and the folder of that in two."""
    weights = load_file(two / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=1e-3)
    history = pd.read_json(two / "metrics.jsonl", lines=True)
    for column in ("train_loss", "test_loss", "test_top1"):
        assert history[column].tolist() == pytest.approx(one.history[column].tolist(), abs=5e-3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_are_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + SHARED)
    one = train(Recipe.load(path), device="cpu")
    run_two(path, tmp_path / "two")
    assert_nearly(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_a_stream(tmp_path: Path) -> None:
    folder, path = write_folder(tmp_path / "images"), tmp_path / "recipe.toml"
    damaged = [folder / name for name in ("train/blue/3.png", "train/red/4.jpg", "val/red/1.jpg")]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:200])
    path.write_text(STREAMED.replace("FOLDER", folder.as_posix()) + SHARED)
    one = train(Recipe.load(path, "data.workers=0"), device="cpu")
    run_two(path, tmp_path / "two")
    assert_nearly(one, tmp_path / "two")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert [Path(name) for name, _ in summary["data"]["skipped"]] == damaged
    assert summary["data"] == json.loads(json.dumps(one.summary["data"]))

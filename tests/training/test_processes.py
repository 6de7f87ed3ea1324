"""Runs in processes of their own: killed and continued, and two that share the batches."""

from __future__ import annotations

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

from keyfilters.training import Recipe, train

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


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_are_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + SHARED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    two = [
        start(path, tmp_path / "two", **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")
    ]
    one = train(Recipe.load(path), device="cpu")
    errors = [process.communicate(timeout=90)[1].decode() for process in two]
    assert [process.returncode for process in two] == [0, 0], errors
    weights = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=1e-3)
    history = pd.read_json(tmp_path / "two" / "metrics.jsonl", lines=True)
    for column in ("train_loss", "test_loss", "test_top1"):
        assert history[column].tolist() == pytest.approx(one.history[column].tolist(), abs=5e-3)

"""The recipes for eight GPUs: what they say, and their first 20 steps in two processes on a CPU.

The weights that they start from are stood in for by untrained ones of our own, since tests fetch
nothing; the 20 steps are those of a miniature of the same architecture.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import keyfilters as kf
from keyfilters.surgery.targets import find_targets
from keyfilters.training import load_data, make_model
from keyfilters.treatment import FilterRecipe
from tests.cli.test_cli import run

RECIPES = Path(__file__).parents[2] / "recipes"
FROZEN, SIGMA, KEYS = (
    f"convnextv2-tiny-{x}" for x in ("idealized-frozen", "idealized-sigma", "eight-keys")
)
LEARNED = {FROZEN: "frozen", SIGMA: "sigma learned (13,248 numbers); unit norm"}
LEARNED[KEYS] = "bias learned (6,624 numbers)"
SMALL: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
COUNT = 1045  # images: a hundredth to validate on, and one batch of 1,024 an epoch

# The command line, and what every process has in the end, of which only the first writes.
PROCESS = """
from keyfilters.cli import main
from keyfilters.training.run import Run
from keyfilters.training.checkpoints import fingerprint
go = Run.go
def told(run, *arguments):
    trained = go(run, *arguments)
    nets = trained.model, trained.ema
    print("digest", *[fingerprint(net)["state"] for net in nets])
    return trained
Run.go = told
main()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of stripes and noise, 40×48 pixels."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", COUNT), ("val", 30)):
        for i in range(count):
            label = i % 3
            pixels = generator.integers(0, 128, (40, 48, 3))
            pixels[:: label + 2, :, label] += 120
            path = root / part / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def untrained(path: Path, seed: int, **options: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("convnextv2_tiny", num_classes=0, **options)
    save_file(model.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [FROZEN, SIGMA, KEYS])
def test_what_the_recipes_say(
    name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = untrained(tmp_path / "trained.safetensors", 0)
    arguments = ["train", str(RECIPES / f"{name}.toml"), "--dry-run", "--processes", "8"]
    arguments += [
        "--set",
        f"data.name=imagefolder:{images}",
        "--set",
        "model.options.pretrained=false",
    ]
    arguments += ["--set", f"filters.assign_from={trained}"]
    code, text, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    facts = dict(line.split(":", 1) for line in text.splitlines())
    facts = {subject: words.strip() for subject, words in facts.items()}
    assert facts["model"].startswith("convnextv2_tiny.fcmae: 27,")
    assert (
        "1,035 images of 3×224×224 in 3 classes, 10 to validate on, 30 to test on" in facts["data"]
    )
    assert facts["batch"] == "1024 = 8 processes × 4 parts × 32 images"
    assert facts["learning rate"] == "0.0032 = 0.0008 × 1024 / 256"
    assert facts["schedule"] == (
        "300 epochs = 300 steps, 40 epochs of warm-up (40 steps), then a cosine down to 1e-06"
    )
    assert facts["layer decay"] == (
        f"0.9 over 18 layers before the head: 0.9^18 = {0.9**18:.4f} for the first, 1 for the head"
    )
    assert facts["optimiser"] == "adamw, weight decay 0.05, none on vectors"
    for word in ("scale 0.08", "flip True", "auto_augment rand-m9-mstd0.5-inc1", "mixup 0.8"):
        assert word in facts["augmentation"]
    for word in ("cutmix 1.0", "erasing 0.25", "label_smoothing 0.1"):
        assert word in facts["augmentation"]
    assert facts["running mean"] == "of the weights, decay 0.9999, without warm-up"
    assert facts["precision"] == "bf16"
    assert facts["filters"].startswith("6,624 filters in 18 of 18 layers on the keys lindeberg2026")
    assert facts["filters"].endswith(LEARNED[name])
    options = FilterRecipe.load(RECIPES / f"{name}.toml").model.options
    assert options == {"pretrained": True, "drop_path_rate": 0.2, "head_init_scale": 0.001}


# One with the published batch; the others with the published parts of 32 images, to save time.
@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(("name", "batch"), [(FROZEN, 256), (SIGMA, 1024), (KEYS, 256)])
def test_their_first_steps(name: str, batch: int, images: Path, tmp_path: Path) -> None:
    first, trained = (
        untrained(tmp_path / f"{what}.safetensors", seed, **SMALL)
        for seed, what in ((1, "first"), (2, "trained"))
    )
    out = tmp_path / "out"
    changes = {
        "data.name": f"imagefolder:{images}",
        "data.resolution": 32,
        "schedule.steps": 20,
        "schedule.select": "last",
        "model.options.pretrained_cfg_overlay": f'{{file="{first}"}}',
        **{f"model.options.{key}": value for key, value in SMALL.items()},
        "filters.assign_from": trained,
    }
    if batch != 1024:
        changes["batch.size"] = batch
    asked = [f"{key}={value}" for key, value in changes.items()]
    told = in_two_processes(RECIPES / f"{name}.toml", out, asked)
    assert f"batch:          {batch} = 2 processes × 4 parts × {batch // 8} images" in told[0]
    digests = [x for text in told for x in text.splitlines() if x.startswith("digest")]
    assert len(digests) == 2 and digests[0] == digests[1]
    assert "\n" not in told[1].strip(), "only the main process says more"

    history = pd.read_json(out / "metrics.jsonl", lines=True)
    assert history["step"].iloc[-1] == 20
    losses = history[["train_loss", "val_loss", "ema_val_loss"]]
    assert np.isfinite(losses.to_numpy()).all() and losses["train_loss"].between(0.5, 2).all()

    recipe = FilterRecipe.load(out / "recipe.toml")
    assert recipe == FilterRecipe.load(RECIPES / f"{name}.toml", *asked)
    model = make_model(recipe, load_data(**recipe.to_dict()["data"]))
    start = {key: x.clone() for key, x in model.state_dict().items()}
    assert torch.equal(start["stem.0.weight"], load_file(first)["stem.0.weight"])
    recipe.filters.apply_(model, recipe.seed)
    drawn = {key: x.clone() for key, x in model.state_dict().items()}  # buffers and parameters
    state = load_file(out / "checkpoint-20" / "best_model.safetensors")
    assert state.keys() == drawn.keys()
    fixed = [key for key in state if "parametrizations" in key and learned(name) not in key]
    assert fixed and all(torch.equal(state[key], drawn[key]) for key in fixed)

    weights = load_file(out / "model.safetensors")
    assert weights.keys() == start.keys() == load_file(out / "ema.safetensors").keys()
    moved = [key for key in weights if not torch.equal(weights[key], start[key])]
    assert len(moved) > 0.9 * len(weights), "all else learns"
    model.load_state_dict(state)
    kf.bake_filters_(model)
    assert all(torch.equal(x, weights[key]) for key, x in model.state_dict().items())
    check_filters(name, model, trained)


def learned(name: str) -> str:
    """What of a parametrised weight may move."""
    return {FROZEN: "nothing", SIGMA: "raw_sigma", KEYS: "weight.0.bias"}[name]


def check_filters(name: str, model: torch.nn.Module, trained: Path) -> None:
    """Compare the filters after training with the best a·x + b of the trained network's."""
    keys = kf.KeySet.published("lindeberg2026-B")
    own = {layer.name: layer.weight for layer in kf.read(trained).layers}
    offsets, turned = [], []
    for site in find_targets(model)[0]:
        best = keys.reconstruct(*keys.assign(own[site.name])[:3]).astype(float)
        ours, theirs = (x - x.mean((1, 2), keepdims=True) for x in (site.filters, best))
        norms = [np.linalg.norm(x, axis=(1, 2)) for x in (ours, theirs)]
        cosine = (ours * theirs).sum((1, 2)) / np.prod(norms, axis=0)
        turned.append(float(1 - cosine.min()))
        offsets.append(float(np.abs(site.filters.mean((1, 2)) - best.mean((1, 2))).max()))
        if name == SIGMA:
            norm = np.linalg.norm(site.filters, axis=(1, 2))
            np.testing.assert_allclose(norm, 1, atol=1e-5)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    if name == SIGMA:
        assert 1e-9 < max(turned) < 0.05, "the scales have moved, by little"
    else:
        assert max(turned) < 1e-6
        assert (max(offsets) > 1e-5) == (name == KEYS), "only b moves, where it is learned"


def in_two_processes(recipe: Path, out: Path, changes: list[str]) -> list[str]:
    """Train; return what the processes said on standard output, that of the first first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    arguments = ["train", str(recipe), "--out", str(out), "--device", "cpu"]
    arguments += [x for change in changes for x in ("--set", change)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=3000) for process in processes]
    finally:
        for process in processes:  # none outlives a test that failed
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [error for _, error in said]
    return [text for text, _ in said]

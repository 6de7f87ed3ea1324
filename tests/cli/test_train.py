from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from keyfilters.cli.common import progress_bar
from keyfilters.keyset import KeySet
from keyfilters.sources import read
from keyfilters.surgery.targets import find_targets
from keyfilters.training import Recipe
from keyfilters.training.run import Run
from keyfilters.treatment import FilterRecipe
from tests.cli.test_cli import run

RECIPE = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
samples = 128
[schedule]
epochs = 2
[ema]
decay = 0.9
"""


NO_FILTERS = """
[model]
name = "resnet10t"
[data]
name = "imagefolder:{}"
resolution = 32
[schedule]
steps = 1
[batch]
size = 16
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def test_train_writes_all_that_counts(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("train", str(recipe), "--out", str(out), "--device", "cpu", "--seed", "3")
    arguments += ("--set", "optimiser.lr=0.002", "--set", "data.classes=[1, 7]")
    code, text, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    for part in ("test_convnext on digits", "test_top1 ", "ema_top1 ", "model.safetensors"):
        assert part in text
    assert {p.name for p in out.iterdir()} == {
        *("checkpoint-4", "curves.png", "ema.safetensors", "metrics.jsonl", "monitor.parquet"),
        *("model.safetensors", "recipe.toml", "summary.json"),
    }
    echo = Recipe.load(out / "recipe.toml")
    assert (echo.seed, echo.optimiser.lr, echo.data.classes) == (3, 0.002, (1, 7))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "summary.json").read_text())["data"]["classes"] == ["1", "7"]
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run(capsys, *arguments)[:2] == (0, text)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    code, _, error = run(capsys, *arguments, "--set", "batch.size=32")
    assert code == 2 and "batch.size (there 64, asked 32)" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optimiser.rl=1"], "'rl' is no key of [optimiser]"),
        (["--set", "data.name=digit"], "no data set is called 'digit'"),
        (["--set", "batch.size=200"], "more than the 128 training images"),
        (["--device", "cuda:99"], "cannot compute on 'cuda:99'"),
    ],
)
def test_what_the_user_can_mend(
    capsys: pytest.CaptureFixture[str], recipe: Path, arguments: list[str], message: str
) -> None:
    code, _, error = run(capsys, "train", str(recipe), *arguments)
    assert code == 2 and message in error


FILTERS = """
[filters]
keys = "lindeberg2026-B"
learn = ["bias"]
"""


def test_filters_on_keys_are_plain_in_the_end(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe.write_text(RECIPE + FILTERS)
    arguments = ("train", str(recipe), "--out", str(out), "--device", "cpu")
    code, text, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    assert "9 of 9 layers on the keys lindeberg2026-B" in text and "bias learned (" in text
    model = timm.create_model("test_convnext", patch_size=1, num_classes=10, in_chans=1)
    files = [out / f"{name}.safetensors" for name in ("model", "ema")]
    for file in files:
        model.load_state_dict(load_file(file))
    sites, _ = find_targets(model)
    keys = KeySet.published("lindeberg2026-B")
    for site in sites:
        assert float(keys.assign(site.filters).residual.max()) < 1e-6
    assert pd.read_csv(out / "filters.csv")["parameters"].gt(0).all()
    before = [file.read_bytes() for file in files]
    assert run(capsys, *arguments)[:2] == (0, text), "a finished run is only read"
    assert [file.read_bytes() for file in files] == before
    assert FilterRecipe.load(out / "recipe.toml") == FilterRecipe.load(recipe)
    code, _, error = run(capsys, *arguments, "--set", "filters.learn=[]")
    assert code == 2 and "filters.learn" in error


class StopError(Exception):
    pass


def test_scales_that_learn_survive_an_interruption(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
    tmp_path: Path,
) -> None:
    arguments = ["train", str(recipe), "--device", "cpu", "--set", "schedule.steps=4"]
    arguments += ["--set", 'filters={keys="lindeberg2026-B", learn=["sigma"], unit_norm=true}']
    arguments += ["--set", "optimiser={base_lr=0.004, layer_decay=0.9}"]
    arguments += ["--set", "checkpoint.steps=2", "--monitor", "1"]
    original = Run._part

    def part(self: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.step == 3:
            raise StopError
        return original(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_part", part)
        with pytest.raises(StopError):
            run(capsys, *arguments, "--out", str(tmp_path / "cut"))
    for name in ("cut", "whole"):
        code, text, _ = run(capsys, *arguments, "--out", str(tmp_path / name))
        assert code == 0 and "0.001 = 0.004 × 64 / 256" in text and "unit norm" in text
    for name in ("model.safetensors", "ema.safetensors"):
        cut, whole = ((tmp_path / out / name).read_bytes() for out in ("cut", "whole"))
        assert cut == whole
    cut, whole = (pd.read_parquet(tmp_path / out / "monitor.parquet") for out in ("cut", "whole"))
    assert whole["step"].tolist() == [0, 1, 2, 3, 4]
    pd.testing.assert_frame_equal(cut[sorted(cut)], whole[sorted(whole)])


def test_monitoring_changes_no_result(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    for every in ("0", "1"):
        out = tmp_path / every
        arguments = ("train", str(recipe), "--device", "cpu", "--monitor", every, "--out", str(out))
        assert run(capsys, *arguments)[0] == 0
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("0", "1")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "0" / "monitor.parquet").exists()
    table = pd.read_parquet(tmp_path / "1" / "monitor.parquet")
    assert table["step"].tolist() == [0, 1, 2, 3, 4]
    assert (table.filter(like="/change").iloc[1:] > 0).all(axis=None)


@pytest.mark.parametrize(
    "section", ['transfer="FILE"', 'keys="lindeberg2026-B", assign_from="FILE"']
)
def test_another_file_of_the_same_name_is_another_run(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path, section: str
) -> None:
    file, arguments = tmp_path / "lender.pth", ["train", str(recipe), "--device", "cpu"]
    text = section.replace("FILE", file.as_posix())
    arguments += ["--set", f"filters={{{text}}}", "--set", "schedule.steps=1"]
    arguments += ["--out", str(tmp_path / "out")]
    for seed, expected in ((1, 0), (1, 0), (2, 2)):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_convnext", patch_size=1).state_dict(), file)
        code, _, error = run(capsys, *arguments)
        assert code == expected
    assert "network.state (there " in error


def test_weights_of_steps_can_be_read_as_filters(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(RECIPE + FILTERS)
    arguments = ["train", str(recipe), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run(capsys, *arguments, "--set", "checkpoint.keep=[0, 2]")[0] == 0
    names = ("step-0", "step-2", "model", "ema")
    banks = [read(tmp_path / "out" / f"{x}.safetensors") for x in names]
    shapes = [[(layer.name, layer.weight.shape) for layer in bank.layers] for bank in banks]
    assert shapes[0] and all(own == shapes[0] for own in shapes)


def test_a_dry_run_says_and_does_nothing(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    arguments = ("train", str(recipe), "--out", str(tmp_path / "out"), "--processes", "4")
    code, text, error = run(capsys, *arguments, "--dry-run")
    assert (code, error) == (0, "") and not (tmp_path / "out").exists()
    assert "batch:          64 = 4 processes × 1 part × 16 images" in text
    assert "filters:        as the model has them" in text
    code, _, error = run(capsys, *arguments)
    assert code == 2 and "--processes is for --dry-run" in error


def test_other_processes_say_nothing_of_what_will_run(
    capsys: pytest.CaptureFixture[str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "train", str(recipe), "--dry-run") == (0, "", "")


def test_what_is_left_out_is_told_and_nothing_is_written_without_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(path)
    path.write_bytes(b"no image")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(NO_FILTERS.format((tmp_path / "images").as_posix()))
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    code, text, error = run(capsys, "train", str(recipe), "--device", "cpu")
    assert code == 0 and "on test images" in text
    told = error.splitlines()
    assert len(told) == 2 and "39.png" in told[0] and "no depthwise filters" in told[1]
    assert set(tmp_path.rglob("*")) == before


def test_the_bar_shows_steps_that_are_passed_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: a terminal
    with progress_bar() as step:
        step("epoch 1", 0, 40)
        step("epoch 3", 40, 40)
    shown = capsys.readouterr().err
    assert "epoch 3" in shown and "0:00:00" in shown, "all steps are done: no time remains"


def test_a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "train", "none.toml")
    assert code == 2 and "cannot read none.toml" in error

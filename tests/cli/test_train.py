from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyfilters.cli.common import progress_bar
from keyfilters.training import Recipe
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
    assert "test_convnext on digits" in text and "ema top1" in text and "model.safetensors" in text
    assert {p.name for p in out.iterdir()} == {
        *("checkpoint.pt", "curves.png", "ema.safetensors", "metrics.jsonl"),
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

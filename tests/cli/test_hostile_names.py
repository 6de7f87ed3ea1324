"""Names that carry markup, terminal codes or formulas, through every verb that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.report.drawing import single_axes, to_svg
from keyfilters.texts import figure_label
from tests.cli.test_cli import run
from tests.report.test_page import Checker

NAMES = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<!--\"'`",
    "../../../etc/passwd",
    "C:\\..\\x",
    "nul\0 \x1b[31mred\x07 \x9b31m",
    "line\r\nend\u2028",
    "\u202eright\u200f\u2066",
    "[bold]{{7*7}}{% raw %}[/bold]",
    "_$x^$%s{0}",
    "x" * 10_000,
    "half\ud800",
    "名前",
)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(10, 5, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    layers = [
        Layer(NAMES[-1 - i], name, weights(i), None, None, i / len(NAMES))
        for i, name in enumerate(NAMES)
    ]
    kf.FilterBank(layers, [(name, f"reason {name}") for name in NAMES]).save(
        folder / "bank.safetensors"
    )
    state = {f"{x}.weight": torch.tensor(weights(i))[:, None] for i, x in enumerate(NAMES)}
    torch.save(state, folder / "net.pth")
    return folder


FEW = ("--keys", "3", "--candidates", "8", "--rounds", "1", "--kinds", "kmeans")
COMMANDS = {
    "read": ("read", "SOURCE"),
    "check": ("check", "SOURCE", "--all"),
    "sarif": ("check", "SOURCE", "--format", "sarif"),
    "compare": ("compare", "SOURCE", "SOURCE"),
    "discover": ("discover", "SOURCE", *FEW),
    "replace": ("replace", "SOURCE"),
    "atlas": ("atlas", "SOURCE", "--seeds", "1"),
}


@pytest.mark.parametrize("source", ["bank.safetensors", "net.pth"])
@pytest.mark.parametrize("verb", COMMANDS)
def test_names_steer_neither_the_terminal_nor_a_page(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, verb: str, source: str
) -> None:
    if (verb, source) == ("replace", "bank.safetensors"):
        pytest.skip("a bank is no model")
    if (verb, source) == ("atlas", "net.pth"):
        pytest.skip("its names are those of the bank")
    out = tmp_path / "out"
    words = [str(folder / source) if x == "SOURCE" else x for x in COMMANDS[verb]]
    code, text, error = run(capsys, *words, "--out", str(out))
    assert code == 0, error
    assert [x for x in text + error if not x.isprintable() and x != "\n"] == []
    if verb == "sarif":
        assert json.loads(text)["version"] == "2.1.0"
    # All was written inside the folder, under names of our own.
    assert {x.parent for x in tmp_path.rglob("*")} <= {tmp_path, out}
    page = out / "report.html"
    if page.exists():
        html = page.read_text(encoding="utf-8")
        checker = Checker()
        checker.feed(html)
        assert checker.open == [] and checker.scripts == 2 * (verb == "atlas")
        assert [x for x in checker.fetched if not x.startswith("data:image/png")] == []
        assert [x for x in html if not x.isprintable() and x not in "\n\t\u200b\u00a0\u00ad"] == []
        assert f"keyfilters {kf.__version__}" in html and f"keyfilters {COMMANDS[verb][0]}" in html


def test_the_bank_keeps_every_name_but_halves_of_characters(folder: Path) -> None:
    bank = kf.read(folder / "bank.safetensors")
    kept = [x.replace("\ud800", "\\ud800") for x in NAMES]
    assert [layer.name for layer in bank.layers] == kept
    assert [name for name, _ in bank.skipped] == kept
    assert bank.stack(5)[1]["layer"].nunique() == len(NAMES)


def test_labels_of_figures_are_no_formulas_and_stay_in_legends() -> None:
    figure, axes = single_axes(4, 3)
    for name in NAMES:
        axes.plot([0, 1], label=figure_label(name))
        axes.set_title(figure_label(name, end=True))
    handles, _ = axes.get_legend_handles_labels()
    assert len(handles) == len(NAMES)
    axes.legend()
    assert "window.hacked" in to_svg(figure) and "<script" not in to_svg(figure)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from keyfilters.receptive_fields import PUBLISHED_OPERATORS, operator, published_filters
from tests.cli.test_cli import run


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    np.save(tmp_path / "eight.npy", published_filters("B"))
    return tmp_path / "eight.npy"


def test_fit_writes_a_table_and_a_picture(
    capsys: pytest.CaptureFixture[str], eight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, error = run(capsys, "fit", str(eight), "--out", str(out))
    assert (code, error) == (0, "")
    assert "8 filters of eight.npy, method B" in text and "sharpen" in text
    assert f"The fits: {(out / 'fit.csv').resolve()}" in text
    assert sorted(p.name for p in out.iterdir()) == ["fit.csv", "fit.png"]
    table = pd.read_csv(out / "fit.csv", keep_default_na=False)
    assert tuple(table["operator"]) == PUBLISHED_OPERATORS
    assert table["name"].tolist() == [f"Filter {i}" for i in range(1, 9)]
    assert (out / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_operators_of_other_filters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    half = torch.tensor([0.6]).double()
    filters = [operator(name).render(half, half, size=5)[0].numpy() for name in ("dy+", "dxx")]
    np.savez(tmp_path / "two.npz", edge=filters[0], line=filters[1])
    arguments = ["fit", str(tmp_path / "two.npz"), "--operators", "dy+, dxx", "--method", "B"]
    code, text, _ = run(capsys, *arguments)
    assert code == 0 and "edge" in text and "line" in text and text.count("0.6000") == 4


def test_parameters_at_an_end_of_their_range_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The central difference is the derivative of scale 0."""
    np.save(tmp_path / "one.npy", np.array([[[0, 0, 0], [0.5, 0, -0.5], [0, 0, 0]]]))
    given = ["fit", str(tmp_path / "one.npy"), "--operators", "dx", "--method", "D1"]
    code, text, error = run(capsys, *given, "--out", str(tmp_path / "out"))
    assert (code, error) == (0, "") and "at its end" in text
    [row] = pd.read_csv(tmp_path / "out" / "fit.csv").to_dict("records")
    assert (row["sigma_x"], row["sigma_y"], row["at_boundary"]) == (0, 0, "sigma_x, sigma_y")
    assert (tmp_path / "out" / "fit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TWO"], "holds 2 filters; name one operator for each, as in --operators dy+,dx-"),
        (["TWO", "--operators", "dx"], "expected 2 operators, one a filter, got 1"),
        (["TWO", "--operators", "dx,dz"], "no operator is called 'dz'; the nearest names are:"),
        (["TWO", "--operators", "dx,dx", "--method", "E"], "no fitting method is called 'E'"),
        (["nothing.npy"], "there is no file nothing.npy"),
        (["TWO", "--out", "TWO"], "is a file; give a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    two = tmp_path / "two.npy"
    np.save(two, published_filters("B")[4:6])
    arguments = [str(two) if a == "TWO" else a for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    code, _, error = run(capsys, "fit", *arguments)
    assert code == 2 and error.startswith("keyfilters: ") and message in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.test_cli import run

TINY = ["--width", "8", "--depth", "1", "--epochs", "1", "--seeds", "1", "--device", "cpu"]


@pytest.mark.slow
def test_transfer_writes_a_page_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["experiment", "transfer", "--target", "digits?samples=100", *TINY, "--no-pointwise"]
    given += ["--resolution", "8", "--out", str(out)]
    code, text, error = run(capsys, *given)
    assert (code, error) == (0, "")
    assert "do frozen filters of digits?samples=100 match learned ones?" in text
    assert "too few seeds to say" in text
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 7 and (table["status"] == "done").all()
    html = (out / "report.html").read_text()
    assert "Do the filters of other networks serve?" in html and "own first filters" in html
    record = json.loads((out / "findings.json").read_text())
    assert record["options"]["width"] == 8 and len(record["answers"]) == 4
    times = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert run(capsys, *given)[0] == 0  # finished runs stay
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}


@pytest.mark.slow
def test_initialization_writes_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["experiment", "initialization", "--data", "digits?samples=100", *TINY]
    given += ["--sizes", "3,5", "--condition", "default", "--condition", "center-surround"]
    code, text, error = run(capsys, *given, "--out", str(out))
    assert (code, error) == (
        0,
        "",
    ) and "Does center-surround beat other first filters at 5×5?" in text
    assert len(pd.read_csv(out / "conditions.csv")) == 4 and (out / "report.html").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "question", "conditions"),
    [
        (
            ["frozen-keys", "--samples", "100", "--condition", "learned", "--condition", "keys"],
            "Do networks on keys match learned filters from 100 images?",
            2,
        ),
        (
            ["replacement", "--data", "digits?samples=100", "--treatment", "keys", "--treatment",
             "frozen", "--early-treatment", "learned"],
            "After tuning, do networks on keys match those that kept their filters?",
            4,
        ),
        (
            ["depth-curve", "--target", "digits?samples=100", "--source", "digits?classes=0,1",
             "--layers", "1", "--no-pointwise", "--resolution", "8"],
            "Do depthwise layers of another task fall below those of the same?",
            6,
        ),
        (
            ["emergence", "--data", "digits?samples=100", "--width", "32", "--depth", "2",
             "--quality", "usual", "--quality", "noise=0.5"],
            "Does the share explained go with the accuracy?",
            2,
        ),
    ],
)  # fmt: skip
def test_every_experiment_answers_and_writes_a_page(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    question: str,
    conditions: int,
) -> None:
    name, *options = arguments
    given = ["experiment", name, *TINY, "--size", "3", *options, "--out", str(tmp_path)]
    code, text, error = run(capsys, *given)
    assert (code, error) == (0, "") and question in text
    assert len(pd.read_csv(tmp_path / "conditions.csv")) == conditions
    record = json.loads((tmp_path / "findings.json").read_text())
    assert record["options"]["size"] == 3 and question in [asked for asked, _ in record["answers"]]
    html = (tmp_path / "report.html").read_text()
    assert question in html and html.count("<svg") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frozen-keys", "--samples", "0"], "--samples 0: whole numbers with commas expected"),
        (["frozen-keys", "--condition", "kees"], "'kees' cannot be done to filters"),
        (["replacement", "--early", "2"], "early is 2.0; a share between 0 and 1"),
        (["depth-curve", "--layers", "9"], "convmixer has 4 depthwise layers, asked: (9,)"),
        (["emergence", "--quality", "nose=1"], "'nose' cannot be changed"),
        (["transfer", "--executor", "rai"], "there is no executor 'rai'"),
        (["transfer", "--address", "auto"], "--executor ray"),
        (["initialization", "--sizes", "3;5"], "--sizes 3;5: whole numbers with commas expected"),
        (["initialization", "--condition", "defalt"], "no initialisation is called 'defalt'"),
        (["transfer", "--target", "digit"], "no data set is called 'digit'"),
        (["transfer", "--device", "warp"], "cannot compute on 'warp'"),
    ],
)
def test_what_the_user_can_mend(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    code, _, error = run(capsys, "experiment", *arguments, "--out", str(out))
    assert code == 2 and message in error and not out.exists()

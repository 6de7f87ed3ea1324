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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["initialization", "--sizes", "3;5"], "--sizes 3;5: kernel sizes with commas expected"),
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

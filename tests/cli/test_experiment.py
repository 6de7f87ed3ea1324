from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from keyfilters.errors import KeyFiltersError
from tests.cli.test_cli import run
from tests.experiments.in_process import InProcess
from tests.report.test_experiment_page import example

TINY = ["--width", "8", "--depth", "1", "--epochs", "1", "--seeds", "1", "--device", "cpu"]


@pytest.mark.slow
def test_an_experiment_writes_a_record_and_a_page_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "keyfilters.experiments.ray_cluster.executor_from", lambda *where: InProcess()
    )
    out = tmp_path / "out"
    given = ["experiment", "transfer", "--target", "digits?samples=100", *TINY, "--no-pointwise"]
    given += ["--resolution", "8", "--out", str(out)]
    code, text, error = run(capsys, *given)
    assert (code, error) == (0, "") and "too few" in text.lower()
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 7 and (table["status"] == "done").all()
    assert len(pd.read_csv(out / "conditions.csv")) == 7
    record = json.loads((out / "record.json").read_text())
    assert record["options"]["width"] == 8 and record["command"].startswith("keyfilters experiment")
    assert record["title"] in (out / "report.html").read_text()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert run(capsys, *given)[0] == 0  # finished runs stay
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = tmp_path / "again.html"
    assert run(capsys, "experiment", "page", str(out / "record.json"), "--out", str(again))[0] == 0
    assert again.read_text() == (out / "report.html").read_text()


@pytest.mark.parametrize(
    "name", ["initialization", "transfer", "depth-curve", "replacement", "frozen-keys", "emergence"]
)
def test_options_are_those_of_the_experiment_and_those_of_all(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, text, _ = run(capsys, "experiment", name, "--help")
    own = {"initialization": "--sizes", "transfer": "--target", "depth-curve": "--depths"}
    own |= {"replacement": "--early", "frozen-keys": "--samples", "emergence": "--quality"}
    assert code == 0 and own[name] in text
    for option in ("--seeds", "--executor", "--gpus-per-run", "--out", "--recipe", "--network"):
        assert option in text
    assert ("--size " in text) is (name != "initialization")


@pytest.mark.parametrize(
    ("there", "given", "workers"),
    [
        (True, (), 1),
        (False, (), None),
        (True, ("--workers", "3"), 3),
        (True, ("--device", "cpu"), None),
    ],
)
def test_one_run_at_a_time_on_a_gpu(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    given: tuple[str, ...],
    workers: int | None,
) -> None:
    """As many as there are cores would not fit on it."""
    asked: list[int | None] = []

    def executor_from(name: str, address: str, cpus: float, gpus: float, own: int | None) -> None:
        asked.append(own)
        raise KeyFiltersError("enough")

    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("keyfilters.experiments.ray_cluster.executor_from", executor_from)
    out = tmp_path / "out"
    code, _, error = run(capsys, "experiment", "transfer", *given, "--out", str(out))
    assert code == 2 and error == "keyfilters: enough\n" and asked == [workers]


def test_runs_that_failed_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = example()
    monkeypatch.setattr("keyfilters.experiments.run_experiment", lambda *_, **__: record)
    given = ["experiment", "frozen-keys", "--condition", "learned", *TINY]
    code, text, error = run(capsys, *given, "--out", str(tmp_path / "out"))
    assert code == 0 and record["short"] in text
    assert error.splitlines() == record["failures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frozen-keys", "--samples", "a"], "--samples a"),
        (["frozen-keys", "--condition", "kees"], "'kees' cannot be done"),
        (["replacement", "--early", "2"], "between 0 and 1"),
        (["depth-curve", "--depths", "9"], "4 depthwise layers"),
        (["emergence", "--quality", "nose=1"], "'nose' cannot be changed"),
        (["transfer", "--executor", "rai"], "no executor 'rai'"),
        (["transfer", "--address", "auto"], "--executor ray"),
        (["initialization", "--sizes", "3;5"], "--sizes 3;5"),
        (["initialization", "--condition", "defalt"], "no initialisation is called 'defalt'"),
        (["transfer", "--target", "digit"], "no data set is called 'digit'"),
        (["transfer", "--device", "warp"], "cannot compute on 'warp'"),
        (["transfer", "--epochs", "0"], "--epochs 0"),
        (["page", "none.json"], "cannot read none.json"),
    ],
)
def test_what_the_user_can_mend(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    code, _, error = run(capsys, "experiment", *arguments, "--out", str(out))
    assert code == 2 and message in error and not out.exists()

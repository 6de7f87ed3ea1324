from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import Run, failures, grid, read_curves, run_grid
from keyfilters.experiments.processes import Task, perform
from tests.experiments import workers

CONDITIONS = {"default": {}, "a / b": {"gain": 2.0, "data": {"size": [8, 8]}}}


def calls(out: Path, run: Run) -> int:
    return len((out / run.folder / "calls.txt").read_text().splitlines())


def at_once(tasks: Sequence[Task], count: int, threads: int) -> Iterator[tuple[Task, str | None]]:
    """Another executor: this process."""
    for task in reversed(tasks):
        yield task, perform(task)


def test_table_is_the_same_for_one_and_two_workers(tmp_path: Path) -> None:
    runs, told = grid(CONDITIONS, range(2), epochs=3)[:3], []
    one = run_grid(runs, workers.measure, tmp_path / "1", workers=1)
    two = run_grid(runs, workers.measure, tmp_path / "2", workers=2, progress=told.append)
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert [str(run) for run in runs] == [f"{r.condition}, seed {r.seed}" for r in one.itertuples()]
    assert list(one) == [
        *("condition", "seed", "options.epochs", "options.gain", "options.data.size"),
        *("top1", "note", "seconds", "attempts", "status", "error", "folder"),
    ]
    assert (one["status"] == "done").all() and (one["seconds"] >= 0).all()
    expected = [workers.measure(dict(r.options), r.seed, tmp_path)["top1"] for r in runs]
    assert one["top1"].tolist() == expected
    written = pd.read_csv(tmp_path / "1" / "table.csv", keep_default_na=False)
    assert written["top1"].tolist() == pytest.approx(expected, rel=1e-12)
    assert len(told) == 4 and told[0].startswith("3 of 3 runs to do, 2 at a time")
    curves = read_curves(one, tmp_path / "1", "curve")
    assert np.array_equal(curves["a / b"][:, 1], one["top1"][one["condition"] == "a / b"])
    record = json.loads((tmp_path / "1" / one["folder"][1] / "run.json").read_text())
    assert record["options"] == {"epochs": 3, "gain": 2.0, "data": {"size": [8, 8]}}
    assert record["function"] == "tests.experiments.workers:measure"
    assert record["environment"]["torch"] and record["environment"]["threads"] >= 1


def test_finished_runs_are_skipped_and_new_ones_done(tmp_path: Path) -> None:
    runs, told = grid(CONDITIONS, range(2)), []
    first = run_grid(runs[:2], workers.measure, tmp_path, executor=at_once)
    both = run_grid(runs, workers.measure, tmp_path, executor=at_once, progress=told.append)
    pd.testing.assert_frame_equal(both[:2], first)
    assert [calls(tmp_path, run) for run in runs] == [1, 1, 1, 1]
    assert sum("finished before" in words for words in told) == 2 and len(told) == 5


def test_changed_request_is_refused(tmp_path: Path) -> None:
    run_grid([Run("A", 0, {"lr": 1, "data": {"size": 8}})], workers.measure, tmp_path,
             executor=at_once)  # fmt: skip
    changed = [Run("B", 0), Run("A", 0, {"lr": 2, "data": {"size": 8}, "new": True})]
    with pytest.raises(KeyFiltersError) as caught:
        run_grid(changed, workers.measure, tmp_path, executor=at_once)
    message = str(caught.value)
    assert "options.lr (there 1, asked 2)" in message and "data" not in message
    assert "options.new (there absent, asked True)" in message
    assert not (tmp_path / "runs" / "B").exists(), "nothing starts before all is checked"
    with pytest.raises(
        KeyFiltersError, match=r"differs in function \(there .*measure, asked .*mis"
    ):
        run_grid([Run("A", 0, {"lr": 1, "data": {"size": 8}})], workers.misbehave, tmp_path)


def test_dying_and_failing_runs_leave_the_others_alone(tmp_path: Path) -> None:
    runs = [Run(manner, 0, {"manner": manner}) for manner in ("die", "vanish", "raise")]
    runs += [Run("always", 0, {"manner": "kill", "always": True}), Run("well", 0, {"manner": ""})]
    table = run_grid(runs, workers.misbehave, tmp_path, workers=2)
    assert table["status"].tolist() == ["done", "done", "done", "failed", "done"]
    assert table["attempts"].tolist() == [2, 2, 2, 2, 1]
    assert [calls(tmp_path, run) for run in runs] == [2, 2, 2, 2, 1]
    [words] = failures(table)
    assert words.startswith("always, seed 0, failed in 2 of 2 attempts: the process was ended by")
    assert "signal 9" in words and "memory" in words and "runs/always/seed-0/error.txt" in words
    assert np.isnan(table["top1"][3])
    said = {run.condition: tmp_path / run.folder / "error.txt" for run in runs}
    for manner, expected in {
        "die": "the process ended with exit code 7 before its run was done",
        "vanish": "the process ended with exit code 0 before its run was done",
        "raise": "RuntimeError: the loss is not finite",
    }.items():
        text = said[manner].read_text()
        assert text.startswith(f"attempt 1 of 2: {expected}\n") and "attempt 2" not in text
    assert "Traceback" in said["raise"].read_text() and "workers.py" in said["raise"].read_text()
    assert not said["well"].exists()


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("reserved", "the result holds seed; these names"),
        ("object", "the result holds a object;"),
        ("exit", "SystemExit: 3"),
    ],
)
def test_what_fits_no_table_fails(tmp_path: Path, manner: str, message: str) -> None:
    runs = [Run("A", 0, {"manner": manner, "always": True}), Run("B", 0)]
    table = run_grid(runs, workers.misbehave, tmp_path, attempts=1, executor=at_once)
    assert table["status"].tolist() == ["failed", "done"]
    assert table["error"][0].startswith(message)
    again = run_grid(runs, workers.misbehave, tmp_path, attempts=3, executor=at_once)
    assert again["status"].tolist() == ["failed", "done"] and again["attempts"].tolist() == [3, 1]


def test_threads_are_limited(tmp_path: Path) -> None:
    before = dict(os.environ)
    table = run_grid([Run("A", 0)], workers.surroundings, tmp_path, threads=1)
    assert dict(os.environ) == before
    assert table["threads"][0] == 1 and table["policy"][0] == "passive"
    assert table["method"][0] in ("forkserver", "spawn"), "a forked process has torch's threads"


def test_interrupted_grid_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # nohup and & ignore it
        "from keyfilters.experiments import Run, run_grid\n"
        "from tests.experiments.workers import hold\n"
        "if __name__ == '__main__':\n"
        f"    run_grid([Run('A', 0), Run('A', 1)], hold, {str(tmp_path / 'out')!r}, workers=2)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE
    )
    first, second = (tmp_path / "out" / "runs" / "A" / f"seed-{seed}" for seed in (0, 1))
    deadline = time.monotonic() + 300
    while not ((first / "result.json").exists() and (second / "calls.txt").exists()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)  # the held run is ended, not awaited
    assert process.returncode != 0 and b"KeyboardInterrupt" in said
    runs = [Run("A", 0), Run("A", 1)]
    table = run_grid(runs, workers.hold, tmp_path / "out")
    assert table["status"].tolist() == ["done", "done"]
    assert [calls(tmp_path / "out", run) for run in runs] == [1, 2]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(KeyFiltersError, match="a function at the top of a module"):
        run_grid([Run("A", 0)], lambda options, seed, folder: {}, tmp_path)
    with pytest.raises(KeyFiltersError, match="two runs share runs/a/seed-0: rename a, seed 0"):
        run_grid([Run("A", 0), Run("a", 0)], workers.measure, tmp_path)
    with pytest.raises(KeyFiltersError, match="two runs share"):
        run_grid([Run("A", 0)] * 2, workers.measure, tmp_path)
    with pytest.raises(KeyFiltersError, match="attempts is 0; 1 or more"):
        run_grid([Run("A", 0)], workers.measure, tmp_path, attempts=0)
    with pytest.raises(KeyFiltersError, match="no runs were given"):
        run_grid([], workers.measure, tmp_path)
    for bad in ({"x": float("nan")}, {"x": Path("y")}):
        with pytest.raises(KeyFiltersError, match="options of A, seed 0 are no JSON"):
            Run("A", 0, bad)
    for condition, seed in (("", 0), ("A", -1)):
        with pytest.raises(KeyFiltersError, match="a name and a seed of 0 or more"):
            Run(condition, seed)
    assert not any(tmp_path.iterdir())
    table = run_grid([Run("A", 0)], workers.measure, tmp_path, executor=at_once)
    with pytest.raises(KeyFiltersError, match="no list 'curves'; it has the lists curve; the near"):
        read_curves(table, tmp_path, "curves")


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_folders_are_safe_and_distinct(names: list[str]) -> None:
    folders = [Run(name, 0).folder for name in names]
    assert folders[0] != folders[1]
    for folder in folders:
        assert len(folder.parts) == 3 and len(folder.parts[1]) <= 64
        assert folder.parts[1].isascii() and not folder.parts[1].startswith(".")

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import LocalProcesses, run_grid
from keyfilters.experiments.executors import outcome
from keyfilters.experiments.results import failures, read_lists
from keyfilters.experiments.run import Run
from tests.experiments import workers
from tests.experiments.in_process import InProcess


def run_of(function: str = "measure", seed: int = 0, **options: Any) -> Run:
    factors = {"of": options.get("manner", options.get("gain", function))}
    return Run(factors, seed, f"tests.experiments.workers:{function}", options)


def calls(out: Path, run: Run) -> int:
    return len((out / run.folder / "calls.txt").read_text().splitlines())


def wait_for(condition: Any, seconds: float = 300) -> None:
    """Wait, and give up only where something hangs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    runs = [run_of(seed=seed, gain=gain) for seed in range(2) for gain in (0.0, 2.0)]
    told: list[str] = []
    here = run_grid(runs, tmp_path / "1", executor=InProcess())
    there = run_grid(
        runs, tmp_path / "2", executor=LocalProcesses(2, threads=1), progress=told.append
    )
    pd.testing.assert_frame_equal(here.drop(columns="seconds"), there.drop(columns="seconds"))
    assert list(here)[:4] == ["of", "seed", "top1", "note"]
    assert (here["status"] == "done").all() and len(told) == 1 + len(runs)
    expected = [workers.measure(dict(r.options), r.seed, tmp_path)["top1"] for r in runs]
    assert here["top1"].tolist() == expected
    written = pd.read_csv(tmp_path / "1" / "table.csv")
    assert written["top1"].tolist() == pytest.approx(expected, rel=1e-12)
    assert [x[1] for x in read_lists(here, tmp_path / "1", "curve")] == expected
    assert read_lists(here, tmp_path / "1", "none") == [[]] * 4


def test_finished_runs_stay_and_new_ones_are_done(tmp_path: Path) -> None:
    runs = [run_of(seed=seed) for seed in range(3)]
    first = run_grid(runs[:2], tmp_path, executor=InProcess())
    both = run_grid(runs, tmp_path, executor=InProcess())
    pd.testing.assert_frame_equal(both[:2], first)
    assert [calls(tmp_path, run) for run in runs] == [1, 1, 1]


@pytest.mark.parametrize("changed", ["versions", "code", "contents", "options"])
def test_a_result_of_something_else_is_never_met(tmp_path: Path, changed: str) -> None:
    run = run_of()
    run_grid([run], tmp_path, executor=InProcess())
    path = tmp_path / run.folder / "run.json"
    record = json.loads(path.read_text())
    record["identity"][changed] = {"torch": "1.0"}
    path.write_text(json.dumps(record))
    run_grid([run], tmp_path, executor=InProcess())
    assert calls(tmp_path, run) == 2
    assert json.loads(path.read_text())["identity"] == run.identity


def test_sources_are_done_first_and_once(tmp_path: Path) -> None:
    lender = run_of(seed=7)
    function = "tests.experiments.workers:borrow"
    borrowers = [Run({"of": "borrow"}, seed, function, {}, {"lender": lender}) for seed in (0, 1)]
    table = run_grid([*borrowers, lender], tmp_path, executor=InProcess())
    assert table["top1"].tolist()[:2] == [1.0, 1.0] and calls(tmp_path, lender) == 1
    broken = run_of("misbehave", manner="raise", always=True)
    later = Run({"of": "later"}, 0, function, {}, {"lender": broken})
    table = run_grid([later, run_of()], tmp_path, executor=InProcess())
    assert table["status"].tolist() == ["failed", "done"]
    assert "its source failed" in table["error"][0] and "not finite" in table["error"][0]
    assert not (tmp_path / later.folder).exists()


def test_dying_and_failing_runs_leave_the_others_alone(tmp_path: Path) -> None:
    runs = [run_of("misbehave", manner=manner) for manner in ("die", "raise", "")]
    runs.append(run_of("misbehave", manner="kill", always=True))
    table = run_grid(runs, tmp_path, executor=LocalProcesses(2, 1))
    assert table["status"].tolist() == ["done", "done", "done", "failed"]
    assert table["attempts"].tolist() == [2, 2, 1, 2]
    assert [calls(tmp_path, run) for run in runs] == [2, 2, 1, 2]
    [words] = failures(table)
    assert "signal 9" in words and "error.txt" in words and np.isnan(table["top1"][3])
    said = [(tmp_path / run.folder / "error.txt") for run in runs]
    assert "exit code 7" in said[0].read_text() and "attempt 2" not in said[0].read_text()
    assert "Traceback" in said[1].read_text() and not said[2].exists()


@pytest.mark.parametrize(
    ("manner", "message"),
    [("reserved", "holds seed"), ("object", "holds a object"), ("exit", "SystemExit")],
)
def test_what_fits_no_table_fails(tmp_path: Path, manner: str, message: str) -> None:
    runs = [run_of("misbehave", manner=manner, always=True), run_of()]
    table = run_grid(runs, tmp_path, attempts=1, executor=InProcess())
    assert table["status"].tolist() == ["failed", "done"] and message in table["error"][0]
    again = run_grid(runs, tmp_path, attempts=3, executor=InProcess())
    assert again["attempts"].tolist() == [3, 1]


def named(kind: str) -> Exception:
    """An error of a class that a library which is not loaded would have."""
    return type(kind, (Exception,), {})("gone")


def caused(error: Exception, cause: Exception) -> Exception:
    error.cause = cause  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (named("OutOfMemoryError"), "lost again and again (OutOfMemoryError)"),
        (named("NodeDiedError"), "lack of memory"),
        (ValueError("too\n large"), "ValueError: too large"),
        (KeyFiltersError("type this"), "type this"),
        (caused(RuntimeError("remote"), KeyFiltersError("type that")), "type that"),
    ],
)
def test_why_a_process_gave_no_answer_is_one_line(problem: Exception, words: str) -> None:
    future: Future[str | None] = Future()
    future.set_exception(problem)
    told = outcome(future)
    assert told is not None and words in told and "\n" not in told
    assert told == words or not isinstance(problem, KeyFiltersError)


def test_threads_are_limited_and_the_environment_stays(tmp_path: Path) -> None:
    before = dict(os.environ)
    table = run_grid([run_of("surroundings")], tmp_path, executor=LocalProcesses(threads=1))
    assert dict(os.environ) == before
    assert table["threads"][0] == 1 and table["policy"][0] == "passive"
    assert table["method"][0] in ("forkserver", "spawn"), "a forked process has torch's threads"


def script(folder: Path) -> subprocess.Popen[bytes]:
    """Start a grid of two runs, of which one is quick, in a process of its own."""
    file = folder / "script.py"
    file.write_text(
        "import signal\n"
        # A shell that starts a job in the background has it ignore this signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from keyfilters.experiments import LocalProcesses, run_grid\n"
        "from tests.experiments.test_grid import run_of\n"
        "if __name__ == '__main__':\n"
        "    runs = [run_of('hold', seed) for seed in (0, 1)]\n"
        f"    run_grid(runs, {str(folder / 'out')!r}, executor=LocalProcesses(2, 1))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, file], env=environment, stderr=subprocess.PIPE)


def test_an_interrupted_grid_goes_on(tmp_path: Path) -> None:
    runs, out = [run_of("hold", seed) for seed in (0, 1)], tmp_path / "out"
    process = script(tmp_path)
    first, second = (out / run.folder for run in runs)
    wait_for(lambda: (first / "result.json").exists() and (second / "calls.txt").exists())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)  # the held run takes an hour: it is ended
    assert process.returncode != 0 and b"KeyboardInterrupt" in said
    table = run_grid(runs, out, executor=InProcess())
    assert table["status"].tolist() == ["done", "done"]
    assert [calls(out, run) for run in runs] == [1, 2]


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = script(tmp_path)
    held = tmp_path / "out" / run_of("hold", 1).folder / "calls.txt"
    wait_for(held.exists)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    assert not alive, "the run sleeps for a minute"


def test_refusals(tmp_path: Path) -> None:
    for runs, attempts in (([], 1), ([run_of()] * 2, 1), ([run_of()], 0)):
        with pytest.raises(KeyFiltersError, match="expected"):
            run_grid(runs, tmp_path, attempts=attempts, executor=InProcess())
    with pytest.raises(KeyFiltersError, match="workers 0"):
        LocalProcesses(workers=0)
    assert not any(tmp_path.iterdir())
    bad = run_of("misbehave", manner="raise", always=True)
    with pytest.raises(KeyFiltersError, match="all 1 runs failed"):
        run_grid([bad], tmp_path, executor=InProcess())
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFiltersError, match=r"cannot write .*run.json"):
        run_grid([run_of()], tmp_path / "file", executor=InProcess())

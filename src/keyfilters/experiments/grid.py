"""A grid of runs: what is finished stays, sources are done first, failures are told.

Every run has a folder ``OUT/runs/KEY``, whose key is a digest of all that decides its result, with
``run.json`` (its factors, and what decides it), ``result.json`` (what its function returned),
``error.txt`` (what every failed attempt said) and whatever else the function writes there.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pandas as pd

from keyfilters.errors import KeyFiltersError, refuse_unwritten
from keyfilters.experiments.executors import Executor, LocalProcesses, Task, outcome
from keyfilters.experiments.results import failures, read_record, table_of
from keyfilters.experiments.run import Run
from keyfilters.files import sweep, typed_path, write_whole

__all__ = ["run_grid"]


def run_grid(
    runs: Sequence[Run],
    out: str | os.PathLike[str],
    *,
    attempts: int = 2,
    progress: Callable[[str], object] = lambda words: None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Do all runs that are not finished, and return the table of all of them.

    Interrupt it and call it again: finished runs are found again if all that decides them is the
    same: function and options, sources, data and files by their content, versions and source code.
    A run that fails is tried again after all others. One grid at a time may write to a folder. In
    a script, call it under ``if __name__ == "__main__":``.

    Args:
        runs: no two of the same factors and seed; their sources are done before them.
        out: folder of the grid.
        attempts: how often a run is tried.
        progress: called with words at the start, and for every run that ends.
        executor: what performs the runs; by default processes of this machine.

    Returns:
        One row a run, in the order of `runs`, also written to ``out/table.csv``: its factors, seed,
        the numbers and texts of its result (for its lists see `read_lists`), seconds, attempts,
        status ("done" or "failed"), error (its first line) and folder.

    Raises:
        KeyFiltersError: no runs, two of the same row, a folder that cannot be written to, an
            executor that cannot start, or every run failed.
        MissingExtraError: what the executor needs is not installed.
    """
    rows = [json.dumps([run.factors, run.seed], sort_keys=True) for run in runs]
    if not runs or attempts < 1 or len(set(rows)) < len(rows):
        twice = next((str(r) for r, row in zip(runs, rows, strict=True) if rows.count(row) > 1), "")
        got = f"{twice} twice" if twice else f"{len(runs)} runs and {attempts} attempts"
        raise KeyFiltersError(f"got {got}; runs of different factors or seeds are expected")
    grid = _Grid(runs, typed_path(out), attempts, progress)
    grid.perform(executor or LocalProcesses())
    table = table_of(runs, Path(out), grid.errors)
    write_whole(Path(out) / "table.csv", table.to_csv(index=False))
    if (table["status"] == "failed").all():
        raise KeyFiltersError(f"all {len(runs)} runs failed; the first: {failures(table)[0]}")
    return table


class _Grid:
    """The runs of a grid and their sources by key, and how far they are."""

    def __init__(
        self, runs: Sequence[Run], out: Path, attempts: int, tell: Callable[[str], object]
    ) -> None:
        self.out, self.attempts, self.tell = out, attempts, tell
        self.runs: dict[str, Run] = {}
        self.errors: dict[str, tuple[str, int]] = {}  # key → first line, attempts
        todo = list(reversed(runs))
        while todo:
            run = todo.pop()
            if run.key not in self.runs:
                self.runs[run.key] = run
                todo += run.sources.values()

    def perform(self, executor: Executor) -> None:
        """Do what is not finished."""
        sources = {key: [x.key for x in run.sources.values()] for key, run in self.runs.items()}
        order = TopologicalSorter(sources)
        order.prepare()
        missing = sum(not self._finished(run) for run in self.runs.values())
        self.tell(f"{missing} of {len(self.runs)} runs to do")
        if not missing:
            return
        waiting, running = deque[tuple[Run, int]](), dict[Any, tuple[Run, int]]()
        with executor:
            room = executor.start(missing)
            while order.is_active():
                for key in order.get_ready():
                    if self._finished(run := self.runs[key]) or self._lacks_source(run):
                        order.done(key)
                    else:
                        waiting.append((run, 1))
                while waiting and len(running) < room:
                    run, attempt = waiting.popleft()
                    running[executor.submit(self._prepared(run, attempt))] = (run, attempt)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    run, attempt = running.pop(future)
                    if self._ended(run, attempt, outcome(future)):
                        order.done(run.key)
                    else:
                        waiting.append((run, attempt + 1))

    def _finished(self, run: Run) -> bool:
        folder = self.out / run.folder
        if not (folder / "result.json").exists():
            return False
        return bool(read_record(folder / "run.json").get("identity") == run.identity)

    def _lacks_source(self, run: Run) -> bool:
        failed = [source for source in run.sources.values() if source.key in self.errors]
        if failed:
            error = f"its source failed ({failed[0]}): {self.errors[failed[0].key][0]}"
            self.errors[run.key] = (error, 0)
            self.tell(f"{run} cannot be done")
        return bool(failed)

    def _prepared(self, run: Run, attempt: int) -> Task:
        """Make the folder of a run, and write down what decides it."""
        folder = (self.out / run.folder).absolute()
        if attempt == 1:
            sweep(folder)
            record = {"factors": run.factors, "seed": run.seed, "identity": run.identity}
            write_whole(folder / "run.json", json.dumps(record, indent=1))
            for name in ("error.txt", "result.json"):
                with refuse_unwritten(folder / name):
                    (folder / name).unlink(missing_ok=True)
        sources = {role: str((self.out / x.folder).absolute()) for role, x in run.sources.items()}
        options = {**run.options, "sources": sources} if sources else dict(run.options)
        return Task(run.function, options, run.seed, folder, attempt, run.identity)

    def _ended(self, run: Run, attempt: int, error: str | None) -> bool:
        """Note how an attempt ended; return whether it was the last one."""
        if error is None:
            self.tell(f"{run} is done")
            return True
        path = self.out / run.folder / "error.txt"
        with refuse_unwritten(path), path.open("a", encoding="utf-8") as file:
            file.write(f"attempt {attempt} of {self.attempts}: {error.rstrip()}\n\n")
        if attempt == self.attempts:
            self.errors[run.key] = (error.splitlines()[0], attempt)
            self.tell(f"{run} has failed")
        return attempt == self.attempts

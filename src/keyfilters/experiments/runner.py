"""A grid of runs over conditions and seeds: what is finished stays, what fails is told.

Every run has a folder ``OUT/runs/CONDITION/seed-N`` with

- ``run.json``: what was asked (condition, seed, options, function) and where (threads, versions);
- ``result.json``: what the function returned, once the run has finished;
- ``error.txt``: what every failed attempt said;
- whatever else the function writes there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pandas as pd

from keyfilters.environment import environment
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.processes import Cluster, Executor, Function, Task, in_processes
from keyfilters.experiments.results import collect, failures, read_record
from keyfilters.experiments.runs import Run
from keyfilters.files import write_whole
from keyfilters.options import differing

__all__ = ["check_grid", "run_grid"]

REQUEST = ("condition", "seed", "options", "function")


def run_grid(
    runs: Sequence[Run],
    function: Function,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    threads: int | None = None,
    attempts: int = 2,
    progress: Callable[[str], object] | None = None,
    executor: Executor = in_processes,
) -> pd.DataFrame:
    """Do all runs that are not finished yet, and return the table of all of them.

    Interrupt it and give the same command again: finished runs stay. A run that fails is tried
    again after all others; its files of the earlier attempt are still in its folder then. One grid
    at a time may write to a folder. Call it under ``if __name__ == "__main__":`` in a script.

    Args:
        runs: no two of the same condition and seed.
        function: ``function(options, seed, folder) -> {name: number, text or list}`` at the top of
            a module; it runs in a process of its own and may write into its folder.
        out: folder of the grid.
        workers: processes at a time; by default as many as there are cores, or runs; on a cluster
            as many as it has room for.
        threads: of torch and BLAS in each worker; by default cores // workers; on a cluster as many
            as CPUs were asked for a run.
        attempts: how often a run is tried.
        progress: called with words once at the start, and then once for every run that was
            finished before, is done or has failed.
        executor: what performs the runs: processes of this machine, or a `RayCluster`.

    Returns:
        One row a run, in the order of `runs`, also written to ``out/table.csv``: condition, seed,
        ``options.NAME`` for each option, the numbers and texts of the result (for its lists see
        `read_curves`), seconds, attempts, status ("done" or "failed"), error (its last line) and
        folder.

    Raises:
        KeyFiltersError: two runs share a folder, a folder holds another request, `function` is
            not at the top of a module, an option is out of its range, `out` cannot be written
            to, or the executor cannot start.
        MissingExtraError: pebble, or what else the executor needs, is not installed.
    """
    out = Path(out)
    for name, value in (("workers", workers), ("threads", threads), ("attempts", attempts)):
        if value is not None and value < 1:
            raise KeyFiltersError(f"{name} is {value}; 1 or more is expected")
    requests = _requests(runs, _reference(function))
    todo = _unfinished(runs, requests, out)
    workers, threads, manner = _shares(executor, workers, threads, len(runs))
    count = 0

    def tell(words: str) -> None:
        nonlocal count
        count += 1
        if progress:
            progress(f"{count} of {len(runs)}: {words}")

    if progress:
        progress(f"{len(todo)} of {len(runs)} runs to do, {manner}")
    tasks, by_folder = [], {}
    about = {"threads": threads, **environment()}
    for run, request in zip(runs, requests, strict=True):
        if run not in todo:
            tell(f"{run} was finished before")
            continue
        tasks.append(_prepared(out / run.folder, request, about))
        by_folder[out / run.folder] = run
    errors: dict[str, str] = {}
    for attempt in range(1, attempts + 1):
        failed = []
        with closing(executor(tasks, workers, threads)) as ended:
            for task, error in ended:
                run = by_folder[task.folder]
                if error is None:
                    tell(f"{run} is done")
                    continue
                failed.append(task)
                with (task.folder / "error.txt").open("a", encoding="utf-8") as file:
                    file.write(f"attempt {attempt} of {attempts}: {error.rstrip()}\n\n")
                if attempt == attempts:
                    errors[str(run.folder)] = error.splitlines()[0]
                    tell(f"{run} has failed")
        tasks = [replace(task, attempt=attempt + 1) for task in failed]
    table = collect(runs, out, errors, attempts)
    write_whole(out / "table.csv", table.to_csv(index=False))
    if len(errors) == len(runs):
        raise KeyFiltersError(f"all {len(runs)} runs failed; the first: {failures(table)[0]}")
    return table


def check_grid(runs: Sequence[Run], function: Function, out: str | os.PathLike[str]) -> None:
    """Refuse what `run_grid` refuses, before any run.

    Raises:
        KeyFiltersError: two runs share a folder, a folder holds another request, or `function` is
            not at the top of a module.
    """
    _unfinished(runs, _requests(runs, _reference(function)), Path(out))


def _requests(runs: Sequence[Run], function: str) -> list[dict[str, Any]]:
    """Return what is asked of every run; refuse two that would share a folder."""
    if not runs:
        raise KeyFiltersError("no runs were given; grid(conditions, seeds) makes them")
    seen: dict[str, Run] = {}
    for run in runs:
        name = str(run.folder).casefold()  # some file systems do not tell A from a
        if name in seen:
            raise KeyFiltersError(f"two runs share {run.folder}: rename {run} or {seen[name]}")
        seen[name] = run
    return [
        {
            "condition": run.condition,
            "seed": run.seed,
            "options": dict(run.options),
            "function": function,
        }
        for run in runs
    ]


def _unfinished(runs: Sequence[Run], requests: list[dict[str, Any]], out: Path) -> list[Run]:
    """Return the runs without a result; refuse a folder in which another request lies."""
    todo = []
    for run, request in zip(runs, requests, strict=True):
        folder = out / run.folder
        if (folder / "run.json").exists():
            old = read_record(folder / "run.json")
            changed = differing({key: old.get(key) for key in REQUEST}, request)
            if changed:
                mend = "give another folder, or delete this one"
                raise KeyFiltersError(
                    f"{folder} holds another run, which differs in {'; '.join(changed)}; {mend}"
                )
        if not (folder / "result.json").exists():
            todo.append(run)
    return todo


def _prepared(folder: Path, request: dict[str, Any], about: dict[str, Any]) -> Task:
    """Make the folder of a run, and write down what is asked and where."""
    write_whole(folder / "run.json", json.dumps({**request, "environment": about}, indent=1))
    (folder / "error.txt").unlink(missing_ok=True)
    return Task(request["function"], request["options"], request["seed"], folder)


def _reference(function: Function) -> str:
    """Return ``module:name`` of a function that another process can import."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    reference = f"{module}:{name}"
    try:
        if resolve_name(reference) is function:
            return reference
    except (ValueError, ImportError, AttributeError):
        pass
    raise KeyFiltersError(f"cannot import {reference}; a function at the top of a module expected")


def _shares(
    executor: Executor, workers: int | None, threads: int | None, runs: int
) -> tuple[int, int, str]:
    """Return how many of all runs go on at a time, the threads of each, and the former in words."""
    if isinstance(executor, Cluster):
        manner = f"at most {workers} at a time" if workers else "as many at a time as find room"
        return workers or runs, threads or executor.threads, manner
    cores = _cores()
    workers = workers or min(cores, runs)  # of all, so that a second call has as many
    return workers, threads or max(1, cores // workers), f"{workers} at a time"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # only those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

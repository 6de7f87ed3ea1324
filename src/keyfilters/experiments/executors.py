"""What performs the runs of a grid: here processes of this machine, in `ray_cluster` many of them.

An executor is entered, started, and given tasks; leaving it ends those that still run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, Self, TypeVar

from keyfilters.errors import KeyFiltersError, needing
from keyfilters.files import write_whole
from keyfilters.threads import by_threads, pieces_done_by

__all__ = [
    "Executor",
    "LocalProcesses",
    "Task",
    "outcome",
    "perform",
    "pieces_on",
    "thread_environment",
]

Result = TypeVar("Result")

RESERVED = ("seed", "seconds", "attempts", "status", "error", "folder")  # columns of the table
PROCESS = "keyfilters run"


@dataclass(frozen=True)
class Task:
    """What a worker process is told: a function ``module:name``, its arguments, and its folder."""

    function: str
    options: dict[str, Any]
    seed: int
    folder: Path  # it exists
    attempt: int = 1
    identity: Mapping[str, Any] = field(default_factory=dict)  # of the run; see `Run`


class Executor(Protocol):
    """Performs tasks, and survives what they do."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def start(self, runs: int) -> float:
        """Prepare for so many runs; return how many may go on at a time."""

    def submit(self, task: Task) -> Future[str | None]:
        """Have a task performed by `perform`; its future gives what `outcome` understands."""

    def map(self, work: Callable[[slice], Result], parts: Sequence[slice]) -> Iterator[Result]:
        """Yield what a work on filters returns for every part, in order."""


@contextmanager
def pieces_on(executor: Executor | None) -> Iterator[None]:
    """Have what is done per filter in a block performed by an executor; None for threads."""
    if executor is None:
        yield
        return
    with executor, pieces_done_by(executor.map):
        yield


def perform(task: Task) -> str | None:
    """Call the function of a task and write ``result.json``: what a worker process does.

    Returns:
        None, or what went wrong: one line, then the traceback.
    """
    start = time.perf_counter()
    try:
        found = resolve_name(task.function)(task.options, task.seed, task.folder)
        if clash := [name for name in found if name in RESERVED]:
            raise KeyFiltersError(f"the result holds {', '.join(clash)}, a name of the table's own")
        seconds = round(time.perf_counter() - start, 3)
        record = {"result": found, "seconds": seconds, "attempts": task.attempt}
        write_whole(task.folder / "result.json", json.dumps(record, indent=1, default=_plain))
    except (Exception, SystemExit) as error:  # whatever a run raises fails that run alone
        return f"{_line(error)}\n\n{traceback.format_exc()}"
    return None


def outcome(future: Future[str | None]) -> str | None:
    """Return None for a task that is done, else one line that says why it is not, and details."""
    problem = future.exception()
    if problem is None:
        return future.result()
    code, kind = getattr(problem, "exitcode", None), type(problem).__name__
    memory = "often that is lack of memory: let fewer runs go on at a time"
    if isinstance(code, int) and code < 0:
        return f"the process was ended by signal {-code} ({signal.strsignal(-code)}); {memory}"
    if isinstance(code, int):
        hint = '; a script needs  if __name__ == "__main__":  around run_grid' if code == 1 else ""
        return f"the process ended with exit code {code} before its run was done{hint}"
    if kind in ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError"):  # of Ray
        return f"its process was lost again and again ({kind}); {memory}"
    return _line(getattr(problem, "cause", None) or problem)


class LocalProcesses:
    """Performs every task in a fresh process of this machine.

    No state passes from run to run, and a process that dies fails its own run only. Where the
    system can, processes are forked from a server that has only imported the libraries, which saves
    each run many seconds. They end with the process that started them, however it ends.

    Args:
        workers: processes at a time; by default as many as there are cores, or runs.
        threads: of torch, BLAS and OpenMP in each; by default cores // workers.

    Raises:
        KeyFiltersError: a number below 1.
    """

    def __init__(self, workers: int | None = None, threads: int | None = None) -> None:
        if any(value is not None and value < 1 for value in (workers, threads)):
            got = f"workers {workers}, threads {threads}"
            raise KeyFiltersError(f"{got}; 1 or more of each are expected")
        self.workers, self.threads = workers, threads
        self.running: list[Future[str | None]] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes that still run, and wait for their end."""
        for future in self.running:
            future.cancel()
        for child in multiprocessing.active_children():
            if child.name == PROCESS:
                child.join()

    def start(self, runs: int) -> float:
        """Return how many runs go on at a time."""
        own = hasattr(os, "sched_getaffinity")  # only cores that this process may use
        cores = len(os.sched_getaffinity(0)) if own else os.cpu_count() or 1
        self.workers = self.workers or min(cores, runs)
        self.threads = self.threads or max(1, cores // self.workers)
        return self.workers

    def submit(self, task: Task) -> Future[str | None]:
        """Perform a task in a process of its own."""
        with needing("train", "running experiments"):
            from pebble import concurrent
        kind = "forkserver" if sys.platform != "win32" else "spawn"
        context, threads = multiprocessing.get_context(kind), self.threads or 1
        if kind == "forkserver":
            context.set_forkserver_preload([task.function.partition(":")[0]])
        # No daemons: a run may have processes of its own, such as those of a DataLoader. Pebble 5.2
        # reads the start method from `context` but types it as `mp_context`; unread, it would fork.
        decorate: Any = concurrent.process
        begin = decorate(name=PROCESS, daemon=False, context=context, mp_context=context)(_worker)
        before = dict(os.environ)
        os.environ.update(thread_environment(threads))  # for what the process loads at its start
        try:
            self.running.append(begin(task, threads))
        finally:
            os.environ.clear()
            os.environ.update(before)
        return self.running[-1]

    def map(self, work: Callable[[slice], Result], parts: Sequence[slice]) -> Iterator[Result]:
        """Do the parts in threads of this process: they need no process of their own."""
        return by_threads(work, parts)


def _worker(task: Task, threads: int) -> str | None:
    """Perform a task in a process that ends when the one that started it is gone."""
    os.environ.update(thread_environment(threads))
    if "torch" in sys.modules:  # the server may have loaded it for another number of threads
        sys.modules["torch"].set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return perform(task)


def _end_with_parent() -> None:
    """Wait for the end of the parent, even by SIGKILL: the same command may start anew then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def thread_environment(threads: int) -> dict[str, str]:
    """Return what the libraries of a new process read when they load, before code of ours runs."""
    counts = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    return {"OMP_WAIT_POLICY": "passive", **counts}


def _plain(value: Any) -> Any:
    """Turn scalars and arrays of NumPy and torch into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    expected = "numbers, texts and lists are expected"
    raise KeyFiltersError(f"the result holds a {type(value).__name__}; {expected}")


def _line(error: BaseException) -> str:
    """Return an error in one line, with its type unless the message was written for users."""
    line = " ".join(str(error).split())
    return line if isinstance(error, KeyFiltersError) else f"{type(error).__name__}: {line}"

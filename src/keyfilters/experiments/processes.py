"""One run in a process of its own, and many of them at a time.

Another executor (see `ray_cluster`) is another function like `in_processes` that calls `perform`
where it likes; what is asked and what is found lie in the run's folder, which both sides must see.
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
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.files import write_whole

__all__ = [
    "RESERVED",
    "Cluster",
    "Ended",
    "Executor",
    "Function",
    "Task",
    "in_processes",
    "perform",
    "thread_environment",
    "words",
]

Function = Callable[[dict[str, Any], int, Path], dict[str, Any]]
RESERVED = ("condition", "seed", "seconds", "attempts", "status", "error", "folder")
PROCESS = "keyfilters run"


@dataclass(frozen=True)
class Task:
    """What a worker process is told.

    Attributes:
        function: ``module:name`` of the function, imported in the worker.
        options: its first argument.
        seed: its second.
        folder: its third; it exists.
        attempt: 1 at first.
    """

    function: str
    options: dict[str, Any]
    seed: int
    folder: Path
    attempt: int = 1


Ended = Generator[tuple[Task, str | None], None, None]


class Executor(Protocol):
    """Performs every task once, in any order, and survives what they do."""

    def __call__(self, tasks: Sequence[Task], workers: int, threads: int) -> Ended:
        """Yield every task when it has ended, with None, or the text of its failure."""


@runtime_checkable
class Cluster(Executor, Protocol):
    """An executor with room of its own, whatever the cores of this machine are."""

    @property
    def threads(self) -> int:
        """Threads of a run, unless the caller says otherwise."""


def perform(task: Task) -> str | None:
    """Call the function of a task and write ``result.json``: what a worker process does.

    Returns:
        None, or what went wrong: one line, then the traceback.
    """
    start = time.perf_counter()
    try:
        found = resolve_name(task.function)(task.options, task.seed, task.folder)
        clash = [name for name in found if name in RESERVED or name.startswith("options.")]
        if clash:
            kept = f"these names and options.* are the table's own: {', '.join(RESERVED)}"
            raise KeyFiltersError(f"the result holds {', '.join(clash)}; {kept}")
        seconds = round(time.perf_counter() - start, 3)
        record = {"result": found, "seconds": seconds, "attempts": task.attempt}
        write_whole(task.folder / "result.json", json.dumps(record, indent=1, default=_plain))
    except (Exception, SystemExit) as error:  # whatever a run raises fails that run alone
        return f"{words(error)}\n\n{traceback.format_exc()}"
    return None


def in_processes(tasks: Sequence[Task], workers: int, threads: int) -> Ended:
    """Perform tasks in fresh processes of this machine; see `Executor`.

    Every task has its own process, so that no state passes from run to run and a process that dies
    fails its own run only. Where the system can, they are forked from a server that has done
    nothing but import the functions, which saves each run the seconds that torch takes to load;
    elsewhere they are spawned. Closing the iterator ends the processes that still run, and
    so does the end of this process, however it comes.

    Args:
        tasks: what to do.
        workers: number of processes at a time.
        threads: of torch, BLAS and OpenMP in each.

    Raises:
        MissingExtraError: pebble is not installed.
    """
    try:
        from pebble import concurrent
    except ModuleNotFoundError as error:
        raise MissingExtraError("running experiments", "train") from error
    # No daemons: a run may have processes of its own, such as those of a DataLoader. Pebble 5.2
    # reads the start method from `context` but types it as `mp_context`; unread, it would fork.
    context = _context({task.function.partition(":")[0] for task in tasks})
    decorate: Any = concurrent.process
    start = decorate(name=PROCESS, daemon=False, context=context, mp_context=context)(_worker)
    waiting, running = list(reversed(tasks)), dict[Future[str | None], Task]()
    try:
        while waiting or running:
            with _environment(threads):
                while waiting and len(running) < workers:
                    task = waiting.pop()
                    running[start(task, threads)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                problem = future.exception()
                yield running.pop(future), _ending(problem) if problem else future.result()
    finally:
        for future in running:
            future.cancel()
        for child in multiprocessing.active_children():
            if child.name == PROCESS:
                child.join()


def _context(modules: set[str]) -> Any:
    """Return how processes start; those of a server have these modules already."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted(modules))
    return context


def _worker(task: Task, threads: int) -> str | None:
    """Perform a task in a process that ends when the one that started it is gone."""
    if "torch" in sys.modules:  # the server may have loaded it for another number of threads
        sys.modules["torch"].set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _environment(threads):
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


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set the variables of `thread_environment` while new processes start."""
    wanted = thread_environment(threads)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _plain(value: Any) -> Any:
    """Turn scalars and arrays of NumPy and torch into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    expected = "numbers, texts and lists are expected"
    raise KeyFiltersError(f"the result holds a {type(value).__name__}; {expected}")


def words(error: BaseException) -> str:
    """Return the last line of an error; its type too, unless the message was written for users."""
    line = " ".join(str(error).split())
    if isinstance(error, KeyFiltersError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _ending(problem: BaseException) -> str:
    """Say how a process ended that gave no answer."""
    code = getattr(problem, "exitcode", None)
    if not isinstance(code, int):
        return words(problem)
    if code >= 0:
        hint = '; a script needs  if __name__ == "__main__":  around run_grid' if code == 1 else ""
        return f"the process ended with exit code {code} before its run was done{hint}"
    hint = "; often that is lack of memory: use fewer workers" if code == -9 else ""
    return f"the process was ended by signal {-code} ({signal.strsignal(-code)}){hint}"

"""Grids over machines: every run is a task of a Ray cluster, in a process of its own."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, Self, TypeVar

from keyfilters.errors import KeyFiltersError, needing
from keyfilters.experiments.executors import (
    Executor,
    LocalProcesses,
    Task,
    perform,
    thread_environment,
)
from keyfilters.experiments.run import code_digest, versions
from keyfilters.threads import one_thread

__all__ = ["RayCluster", "executor_from"]

Result = TypeVar("Result")

CONNECT = 5.0  # seconds for an address to answer
RETRIES = 3  # of a run whose process or machine is lost, by Ray; it goes on in its folder


class RayCluster:
    """Performs every task on a Ray cluster, in a process of its own.

    Every node needs this version of keyfilters and must see the folder of the grid under the same
    path; a run that finds another version or no folder fails and says so. A run whose process or
    machine is lost is started again elsewhere up to three times, and goes on from what lies in its
    folder. A Ray that the caller has initialised is used as it is, and stays.

    Args:
        address: ``"auto"`` (the cluster of which this machine is a node), ``"host:port"``,
            ``"ray://host:port"`` (from a machine that is no node), or empty: this machine only.
        cpus: for each run; it has as many threads.
        gpus: for each run, such as 0.5 for two runs a GPU; at 0 a run sees none.
        workers: runs at a time; by default as many as find room.

    Raises:
        KeyFiltersError: CPUs or GPUs that cannot be asked for; when entered: no cluster there;
            when started: no node that is large enough.
        MissingExtraError: when entered: ray is not installed.
    """

    def __init__(
        self, address: str = "", cpus: float = 1, gpus: float = 0, workers: int | None = None
    ) -> None:
        self.address, self.cpus, self.gpus, self.workers = address, cpus, gpus, workers
        self.room = f"{cpus:g} CPUs and {gpus:g} GPUs"
        self.own, self.running = False, list[Any]()
        if not cpus > 0 or not gpus >= 0 or (gpus > 1 and gpus % 1):
            expected = "more than 0 CPUs, and a share of one GPU or whole ones, are expected"
            raise KeyFiltersError(f"a run was to have {self.room}; {expected}")

    def __enter__(self) -> Self:
        """Connect, unless the caller has."""
        with needing("ray", "running on a cluster"):
            import ray
        self.own = not ray.is_initialized()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not self.address:
            options |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        try:
            if self.own:
                _reach(self.address)
                ray.init(self.address or "local", **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"reach a Ray cluster at {self.address}" if self.address else "start Ray here"
            hint = "; on its first machine type: ray start --head" if self.address else ""
            if self.address not in ("", "auto"):  # Ray takes its token along to "auto" only
                hint += "; if it runs already, type here: export RAY_AUTH_MODE=token"
            raise KeyFiltersError(f"cannot {where} ({error}){hint}") from error
        return self

    def __exit__(self, *error: object) -> None:
        """End what still runs; leave the cluster, unless it is the caller's."""
        import ray

        _, running = ray.wait(self.running, num_returns=len(self.running), timeout=0) \
            if self.running else ([], [])  # fmt: skip
        for reference in running:
            ray.cancel(reference, force=True)
        if running:
            ray.wait(running, num_returns=len(running), timeout=30)
        if self.own:
            ray.shutdown()

    def start(self, runs: int) -> float:
        """Refuse runs for which no node is large enough: Ray would wait without end."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = [(x.get("CPU", 0.0), x.get("GPU", 0.0)) for x in nodes]
        if not any(cpus >= self.cpus and gpus >= self.gpus for cpus, gpus in sizes):
            have = " and ".join(f"{cpus:g} CPUs with {gpus:g} GPUs" for cpus, gpus in sizes)
            raise KeyFiltersError(f"a run was to have {self.room}, the nodes have {have}; ask less")
        return self.workers or inf

    def submit(self, task: Task) -> Future[str | None]:
        """Perform a task on a node with room."""
        remote = self._remote(_perform_here, max_calls=1)
        self.running.append(remote.remote(task, str(Path.cwd())))
        future: Future[str | None] = self.running[-1].future()
        return future

    def map(self, work: Callable[[slice], Result], parts: Sequence[slice]) -> Iterator[Result]:
        """Do every part on a node with room; the work, with its filters, is sent to each once.

        A process does many parts, one at a time. Files need not be seen by the nodes.

        Raises:
            KeyFiltersError: what the work raises; a node with other versions.
        """
        import ray

        self.start(1)
        room = ray.cluster_resources().get("CPU", 1.0) / self.cpus
        most = self.workers or 2 * max(1, int(room))  # one waits where one is done
        remote, shared = self._remote(_do_here), ray.put(work)
        started: deque[Any] = deque()
        try:
            for part in parts:
                started.append(remote.remote(shared, part, versions()))
                if len(started) >= most:
                    yield _result(started.popleft())
            while started:
                yield _result(started.popleft())
        finally:
            for reference in started:
                ray.cancel(reference)

    def _remote(self, function: Callable[..., Any], **options: Any) -> Any:
        """Return a function as a remote one with the room and the threads of a run."""
        import ray

        variables = thread_environment(max(1, int(self.cpus)))
        variables |= {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray's habit changes
        return ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES,
            runtime_env={"env_vars": variables}, **options,
        )(function)  # fmt: skip


def _result(reference: Any) -> Any:
    """Wait for a part; what the work raised is raised as it was."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, KeyFiltersError):
            raise error.cause from error
        raise


def _do_here(work: Callable[[slice], Any], part: slice, wanted: dict[str, str]) -> Any:
    """Do a part on a node, on one thread."""
    _refuse_other({"versions": wanted}, {"versions": versions()})
    with one_thread():
        return work(part)


def _reach(address: str) -> None:
    """Refuse an address at which nothing answers; Ray would go on trying for five minutes."""
    if address and address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()


def _perform_here(task: Task, folder: str) -> str | None:
    """Perform a task on a node, in the working folder of the caller where the node has it."""
    if not (task.folder / "run.json").exists():
        seen = "--out must lie where all nodes see it"
        return f"the node {socket.gethostname()} does not see {task.folder}; {seen}"
    try:
        code = code_digest(task.function.partition(":")[0])
        _refuse_other(task.identity, {"code": code, "versions": versions()})
    except KeyFiltersError as error:
        return str(error)
    if (task.folder / "result.json").exists():  # the node was lost when the run had just ended
        return None
    with suppress(OSError):
        os.chdir(folder)
    return perform(task)


def _refuse_other(wanted: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to work on a node whose code or packages are not those of the caller."""
    if other := [f"{name}: {x}" for name, x in own.items() if wanted.get(name, x) != x]:
        node = f"the node {socket.gethostname()}"
        raise KeyFiltersError(
            f"{node} has another keyfilters or other packages ({'; '.join(other)})"
        )


def executor_from(
    name: str, address: str = "", cpus: float = 1, gpus: float = 0, workers: int | None = None
) -> Executor:
    """Return an executor for `run_grid` by its name, ``"local"`` or ``"ray"``.

    Raises:
        KeyFiltersError: an unknown name, or options of a cluster without one.
    """
    if name == "ray":
        return RayCluster(address, cpus, gpus, workers)
    if name != "local":
        raise KeyFiltersError(f"there is no executor {name!r}; local or ray is expected")
    given = {f"--address {address}": address, f"--cpus-per-run {cpus:g}": cpus != 1,
             f"--gpus-per-run {gpus:g}": gpus}  # fmt: skip
    if got := ", ".join(words for words, is_given in given.items() if is_given):
        raise KeyFiltersError(f"{got} is for a cluster; type also: --executor ray")
    return LocalProcesses(workers)

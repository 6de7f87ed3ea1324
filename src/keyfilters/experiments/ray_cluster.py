"""Grids over machines: every run is a task of a Ray cluster, in a process of its own.

A run that raises, or whose process dies, has failed, as on one machine. A run whose node is lost
has not: it goes to another node and goes on from what lies in its folder, which all nodes see.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.processes import Ended, Task, perform, thread_environment, words
from keyfilters.experiments.ray_nodes import (
    Node,
    alive,
    check_nodes,
    connected,
    nodes_with_room,
    room_in_words,
)

__all__ = ["RayCluster"]

LOOK = 30.0  # seconds after which it is checked that a node with room is left
GRACE = 5.0  # seconds in which a node that is stopped outlives its processes
LOST = 10  # nodes that may be lost under one run: such a run may be what brings them down


@dataclass(frozen=True)
class RayCluster:
    """An executor for `run_grid` that performs every run on a Ray cluster.

    Every node needs this version of keyfilters and must see the folder of the grid under the same
    path. A Ray that the caller has initialised is used as it is, and stays; another is left, or
    ended, when the grid ends.

    Args:
        address: ``"auto"`` (the cluster of which this machine is a node), ``"host:port"``,
            ``"ray://host:port"`` (from a machine that is no node), or empty: this machine only.
        cpus: for each run; it has as many threads.
        gpus: for each run, such as 0.5 for two runs a GPU; at 0 a run sees none.

    Raises:
        KeyFiltersError: CPUs or GPUs that cannot be asked for; at the call: no cluster there, no
            node that is large enough, or one that lacks this version or does not see the folder.
        MissingExtraError: at the call: ray is not installed.

    >>> RayCluster("auto", cpus=2, gpus=0.5).threads
    2
    """

    address: str = ""
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if not self.cpus > 0 or not self.gpus >= 0 or (self.gpus > 1 and self.gpus % 1):
            expected = "more than 0 CPUs, and a share of one GPU or whole ones, are expected"
            raise KeyFiltersError(
                f"a run was to have {room_in_words(self.cpus, self.gpus)}; {expected}"
            )

    @property
    def threads(self) -> int:
        """Threads of torch and BLAS in a run, unless the caller says otherwise."""
        return max(1, int(self.cpus))

    def __call__(self, tasks: Sequence[Task], workers: int, threads: int) -> Ended:
        """Perform tasks on the cluster; see `Executor`. At most `workers` at a time."""
        if not tasks:
            return
        with connected(self.address) as ray:
            nodes = nodes_with_room(ray, self.cpus, self.gpus)
            check_nodes(ray, nodes, tasks[0].folder.absolute())
            yield from self._perform(ray, tasks, workers, threads)

    def _perform(self, ray: Any, tasks: Sequence[Task], workers: int, threads: int) -> Ended:
        # Ray itself would try again as often after the death of a process as after that of a node
        # (max_retries); only without its retries does it tell which of the two it was.
        unseen = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray's habit differs by version
        remote = ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_calls=1,
            max_retries=0,
            runtime_env={"env_vars": thread_environment(threads) | unseen},
        )(_perform_here)
        waiting, running, lost = list(reversed(tasks)), dict[Any, Task](), Counter[Path]()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.pop()
                    moved = replace(task, folder=task.folder.absolute())
                    running[remote.remote(moved, str(Path.cwd()))] = task
                nodes = alive(ray)
                done, _ = ray.wait(list(running), timeout=LOOK)
                if not done:
                    nodes_with_room(ray, self.cpus, self.gpus)
                for reference in done:
                    task = running.pop(reference)
                    try:
                        error = ray.get(reference)
                    except ray.exceptions.RayError as problem:
                        error = _ending(ray, problem)
                        if _node_was_lost(ray, problem, nodes):
                            lost[task.folder] += 1
                            if (task.folder / "result.json").exists():
                                error = None
                            elif lost[task.folder] < LOST:
                                waiting.append(task)
                                continue
                    yield task, error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=LOOK)


def _perform_here(task: Task, folder: str) -> str | None:
    """Perform a task on a node, in the working folder of the caller where the node has it."""
    if not (task.folder / "run.json").exists():  # the node may have come after the check
        return f"the node {socket.gethostname()} does not see {task.folder}"
    with suppress(OSError):
        os.chdir(folder)
    return perform(task)


def _node_was_lost(ray: Any, problem: Exception, before: dict[str, Node]) -> bool:
    """Tell whether a task ended with its node; when that is stopped, processes may end first."""
    if isinstance(problem, ray.exceptions.NodeDiedError):
        return True
    if isinstance(problem, ray.exceptions.WorkerCrashedError):
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if before.keys() - alive(ray).keys():
                return True
            time.sleep(0.25)
    return False


def _ending(ray: Any, problem: Exception) -> str:
    """Say how a task ended that gave no answer."""
    hint = "ask for more CPUs a run, so that fewer share a node"
    if isinstance(problem, ray.exceptions.NodeDiedError):
        return f"{LOST} nodes were lost while they did this run; often that is lack of memory"
    if isinstance(problem, ray.exceptions.OutOfMemoryError):
        return f"Ray ended the process since the memory of its node was full; {hint}"
    if isinstance(problem, ray.exceptions.WorkerCrashedError):
        return f"the process ended before its run was done; often that is lack of memory: {hint}"
    return words(getattr(problem, "cause", None) or problem)

"""Connecting to a Ray cluster, and refusing nodes on which runs would fail or wait without end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.experiments.processes import words
from keyfilters.files import write_whole

__all__ = ["Node", "alive", "check_nodes", "connected", "nodes_with_room", "room_in_words"]

Node = dict[str, Any]  # as ray.nodes() describes it

CONNECT = 10.0  # seconds for an address to answer
ANSWER = 120.0  # seconds for all nodes to answer: a busy one starts a process slowly
STORE = 80 * 2**20  # bytes of Ray's object store, of which runs use nothing


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module ray, connected and quiet; what the caller has connected stays as it is.

    Raises:
        KeyFiltersError: there is no cluster at the address, or it is of another version of Ray.
        MissingExtraError: ray is not installed.
    """
    try:
        import ray
        from ray._private import worker
    except ModuleNotFoundError as error:
        raise MissingExtraError("running on a cluster", "ray") from error
    if ray.is_initialized():
        yield ray
        return
    local = {"include_dashboard": False, "object_store_memory": STORE}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    logs, ending = worker._worker_logs_enabled, signal.getsignal(signal.SIGTERM)
    worker._worker_logs_enabled = False  # else the log of a lost node comes on standard output
    try:
        try:
            if address:
                _reach(address)
            with warnings.catch_warnings():  # the error that follows says the same
                warnings.simplefilter("ignore")
                ray.init(address or "local", **quiet, **({} if address else local))
        except (OSError, RuntimeError, ValueError) as error:
            where = f"reach a Ray cluster at {address}" if address else "start Ray on this machine"
            hint = "; on its first machine type: ray start --head" if address else ""
            if address not in ("", "auto"):  # Ray takes its token along to "auto" only
                hint += "; if it runs already, type here: export RAY_AUTH_MODE=token"
            raise KeyFiltersError(f"cannot {where} ({words(error)}){hint}") from error
        yield ray
    finally:
        ray.shutdown()
        worker._worker_logs_enabled = logs
        if ending and threading.current_thread() is threading.main_thread():  # Ray sets its own
            signal.signal(signal.SIGTERM, ending)


def _reach(address: str) -> None:
    """Refuse an address at which nothing answers; Ray would go on trying for five minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    client = address.startswith("ray://")
    place = address.removeprefix("ray://") if client else canonicalize_bootstrap_address(address)
    host, _, port = str(place).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()


def alive(ray: Any) -> dict[str, Node]:
    """Return the nodes of the cluster by their names in Ray."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def nodes_with_room(ray: Any, cpus: float, gpus: float) -> list[Node]:
    """Return the nodes that can take a run, however busy they are; Ray would wait without end.

    Raises:
        KeyFiltersError: there is none; the message says what the largest has.
    """
    nodes = list(alive(ray).values())
    room = [(n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in nodes]
    able = [n for n, (c, g) in zip(nodes, room, strict=True) if c >= cpus and g >= gpus]
    if not able:
        largest = max(room, key=lambda r: (min(r[1], gpus), r[0]), default=(0, 0))
        raise KeyFiltersError(
            f"a run was to have {room_in_words(cpus, gpus)}, but the largest node of the cluster "
            f"has {room_in_words(*largest)}; ask for less a run, or add a node"
        )
    return able


def room_in_words(cpus: float, gpus: float) -> str:
    """Return for example ``2 CPUs and 0.5 GPUs``."""
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def check_nodes(ray: Any, nodes: Sequence[Node], folder: Path) -> None:
    """Refuse nodes without this version of keyfilters, and those that do not see the folder.

    Args:
        ray: the module, connected.
        nodes: on which runs may go.
        folder: one that this machine can write to.

    Raises:
        KeyFiltersError: says which node lacks what, or that it does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    token, ours = uuid.uuid4().hex, version("keyfilters")
    sign = folder / f".seen-{token}"
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    write_whole(sign, token)
    try:
        asked = {}
        for node in nodes:
            there = probe.options(scheduling_strategy=On(node["NodeID"], soft=False))
            asked[there.remote(str(sign))] = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
        if silent:
            raise KeyFiltersError(f"the node {asked[silent[0]]} does not answer; see: ray status")
        for reference, name in asked.items():
            try:
                theirs, seen = ray.get(reference)
            except ray.exceptions.RayError:  # the node is lost
                continue
            if theirs != ours:
                has = f"keyfilters {theirs}" if theirs else "no keyfilters"
                mend = f"type there: pip install keyfilters=={ours}"
                raise KeyFiltersError(f"the node {name} has {has}, not {ours}; {mend}")
            if seen != token:
                mend = "--out must lie on a file system that all nodes share"
                raise KeyFiltersError(f"the node {name} does not see {folder}; {mend}")
    finally:
        sign.unlink(missing_ok=True)


def _probe() -> Callable[[str], tuple[str, str]]:
    """Return a function that Ray sends whole, since the node may lack keyfilters."""

    def probe(sign: str) -> tuple[str, str]:
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        try:
            found = version("keyfilters")
        except PackageNotFoundError:
            found = ""
        try:
            return found, Path(sign).read_text()
        except OSError:
            return found, ""

    return probe

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.experiments import Run, grid, ray_cluster, ray_nodes, run_grid
from keyfilters.experiments.executors import executor_from
from keyfilters.experiments.processes import Task
from keyfilters.experiments.ray_cluster import RayCluster
from tests.experiments import workers

STORE = 80 * 2**20


@pytest.fixture(scope="module")
def port() -> int:
    """A free port for those who are no nodes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(port: int) -> Iterator[Cluster]:
    """Two nodes of one CPU each; the second is lost in the last test."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's server for clients forks while gRPC runs, and at times what it forks dies at once.
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        patch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "20")
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        with warnings.catch_warnings():  # Ray leaves two log files open
            warnings.simplefilter("ignore", ResourceWarning)
            started = Cluster(True, head_node_args={**head, "ray_client_server_port": port})
        started.add_node(num_cpus=1, object_store_memory=STORE)
        yield started
        started.shutdown()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that dies is waited upon for this long."""
    monkeypatch.setattr(ray_cluster, "GRACE", 0.5)


def calls(out: Path, run: Run) -> int:
    return len((out / run.folder / "calls.txt").read_text().splitlines())


def age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def wait_for(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


@pytest.mark.long
def test_failures_are_told_as_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    manners = {"raises": {"manner": "raise", "always": True}, "well": {}}
    runs, told = grid(manners, [1]), []
    here = run_grid(runs, workers.misbehave, tmp_path / "here", workers=2)
    runs.append(Run("killed", 0, {"manner": "kill", "always": True}))
    runs.append(Run("dies once", 0, {"manner": "die"}))
    executor, on_term = RayCluster(cluster.address), signal.getsignal(signal.SIGTERM)
    there = run_grid(
        runs, workers.misbehave, tmp_path / "there", executor=executor, progress=told.append
    )
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) is on_term
    same(here, there[list(here)][:2])
    assert there["status"].tolist() == ["failed", "done", "failed", "done"]
    assert there["attempts"].tolist() == [2, 1, 2, 2]
    assert there["error"][2].startswith("the process ended before its run was done; often that is")
    said = (tmp_path / "there" / runs[0].folder / "error.txt").read_text()
    assert "workers.py" in said and "attempt 2 of 2: RuntimeError: the loss is not finite" in said
    assert told[0] == "4 of 4 runs to do, as many at a time as find room" and len(told) == 5


@pytest.mark.long
def test_threads_processes_and_the_ray_of_the_caller(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = grid({"A": {"seconds": 0}}, range(3))
    ray.init(cluster.address, log_to_driver=False)
    try:
        run_grid(runs, workers.linger, "out", workers=1, executor=RayCluster())
        again = run_grid(runs, workers.linger, "out", executor=RayCluster())
        table = run_grid([Run("B", 0)], workers.surroundings, "out", executor=RayCluster("none"))
        assert ray.is_initialized(), "it is the caller's"
    finally:
        ray.shutdown()
    assert [calls(Path("out"), run) for run in runs] == [1, 1, 1]
    assert (again["status"] == "done").all()
    processes = {(Path("out") / run.folder / "process.txt").read_text() for run in runs}
    assert len(processes) == 3, "no state passes from run to run"
    assert table["threads"][0] == 1 and table["policy"][0] == "passive"
    assert table["gpus"][0] == "", "none was asked for"


@pytest.mark.long
def test_closing_ends_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    tasks = []
    for name, seconds in (("quick", 0), ("held", 60), ("waiting", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
        function = "tests.experiments.workers:linger"
        tasks.append(Task(function, {"seconds": seconds}, 0, tmp_path / name))
    with closing(RayCluster(cluster.address)(tasks, 2, 1)) as ended:
        assert next(ended) == (tasks[0], None)
        wait_for((tmp_path / "held" / "process.txt").exists)
        process = int((tmp_path / "held" / "process.txt").read_text() or 0)
        start = time.monotonic()
    assert not ray.is_initialized()
    wait_for(lambda: not psutil.pid_exists(process), 10)
    assert time.monotonic() - start < 20, "it is ended, not awaited"
    assert not (tmp_path / "held" / "result.json").exists()


@pytest.mark.long
def test_from_a_machine_that_is_no_node(cluster: Cluster, port: int, tmp_path: Path) -> None:
    address = f"ray://127.0.0.1:{port}"
    runs = grid({"well": {}, "raises": {"manner": "raise"}}, [0])
    for remaining in (2, 1, 0):
        try:
            table = run_grid(runs, workers.misbehave, tmp_path, executor=RayCluster(address))
        except KeyFiltersError as error:
            if "Starting Ray client server failed" not in str(error) or not remaining:
                raise
        else:
            break
    assert not ray.is_initialized()
    assert table["status"].tolist() == ["done", "done"] and table["attempts"].tolist() == [1, 2]


@pytest.mark.long
def test_nodes_that_cannot_do_it_are_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, **room: float) -> None:
        with pytest.raises(KeyFiltersError, match=message):
            executor = RayCluster(cluster.address, **room)
            run_grid([Run("A", 0)], workers.measure, tmp_path, executor=executor)
        assert not ray.is_initialized()

    refused(r"have 2 CPUs and 0 GPUs, but the largest node of the cluster has 1 CPUs", cpus=2)
    refused("have 1 CPUs and 0.5 GPUs, but the largest .* 0 GPUs; ask for less a run", gpus=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "version", lambda name: "99.0")
        refused(r"the node .* has keyfilters .*, not 99.0; type there: pip install keyfilters==99")
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "write_whole", lambda path, content: None)
        refused(r"the node .* does not see .*seed-0; --out must lie on a file system that all")
    assert not (tmp_path / "runs" / "A" / "seed-0" / "calls.txt").exists()
    assert [p.name for p in (tmp_path / "runs" / "A" / "seed-0").iterdir()] == ["run.json"]


def test_a_node_that_came_after_the_check(tmp_path: Path) -> None:
    task = Task("tests.experiments.workers:measure", {}, 0, tmp_path / "elsewhere")
    assert "does not see" in str(ray_cluster._perform_here(task, str(tmp_path)))


@pytest.mark.parametrize(("left", "lost"), [({"a"}, True), ({"a", "b"}, False)])
def test_a_process_that_ends_shortly_before_its_node(left: set[str], lost: bool) -> None:
    nodes = [{"NodeID": name, "Alive": name in left} for name in "ab"]
    fake = SimpleNamespace(nodes=lambda: nodes, exceptions=ray.exceptions)
    crash = ray.exceptions.WorkerCrashedError()
    assert ray_cluster._node_was_lost(fake, crash, {"a": {}, "b": {}}) is lost


def test_refusals_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # A port at which nothing listens, and what is no address.
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"):
        with pytest.raises(KeyFiltersError, match=f"cannot reach a Ray cluster at {address} .*ray"):
            run_grid([Run("A", 0)], workers.measure, tmp_path, executor=RayCluster(address))
    for bad in ({"cpus": 0}, {"gpus": -1}, {"gpus": 1.5}, {"cpus": float("nan")}):
        with pytest.raises(KeyFiltersError, match="more than 0 CPUs, and a share of one GPU or"):
            RayCluster(**bad)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keyfilters\[ray\]'"):
        run_grid([Run("A", 0)], workers.measure, tmp_path, executor=RayCluster())


def test_executors_by_name() -> None:
    assert executor_from("ray", "auto", 2, 0.5) == RayCluster("auto", 2, 0.5)
    assert executor_from("local", "", 1, 0) is executor_from()
    with pytest.raises(KeyFiltersError, match=r"no executor 'rey'; .*; the nearest names are: ray"):
        executor_from("rey")
    with pytest.raises(KeyFiltersError, match=r"--address auto is for a cluster; .*--executor ray"):
        executor_from("local", "auto")
    with pytest.raises(KeyFiltersError, match="--gpus-per-run 1 is for a cluster"):
        executor_from("local", gpus=1)


@pytest.mark.long
def test_a_lost_node_costs_no_attempt(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    conditions = {"low": {"gain": 1.0}, "high": {"gain": 2.0}}
    runs, there = grid(conditions, range(4), seconds=4), tmp_path / "there"
    here = run_grid(runs, workers.linger, tmp_path / "here", workers=8)

    [node] = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    def has_begun_there() -> bool:
        started = [there / run.folder / "process.txt" for run in runs]
        fresh = [file for file in started if file.exists() and age(file) < 2]
        return bool({int(f.read_text() or 0) for f in fresh} & {p.pid for p in raylet.children()})

    def lose() -> None:
        wait_for(has_begun_there)
        processes = raylet.children(recursive=True)
        cluster.remove_node(node, allow_graceful=False)
        for process in processes:  # they would live on for a second, and some runs would be done
            with suppress(psutil.NoSuchProcess):
                process.kill()

    loser = threading.Thread(target=lose)
    loser.start()
    table = run_grid(runs, workers.linger, there, executor=RayCluster(cluster.address))
    loser.join()
    assert not cluster.worker_nodes
    same(here, table)
    assert (table["attempts"] == 1).all()
    assert sorted(calls(there, run) for run in runs) == [1] * 7 + [2]
    again = run_grid(runs, workers.linger, there, executor=RayCluster(cluster.address))
    pd.testing.assert_frame_equal(again, table)
    assert capfd.readouterr().out == "", "Ray keeps quiet"

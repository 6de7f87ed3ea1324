from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.experiments import LocalProcesses, RayCluster, run_grid
from keyfilters.experiments.executors import Task
from keyfilters.experiments.ray_cluster import _perform_here, executor_from
from tests.experiments.in_process import InProcess
from tests.experiments.test_grid import calls, run_of, wait_for

STORE = 80 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each; the second is lost in the last test."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        with warnings.catch_warnings():  # Ray leaves two log files open
            warnings.simplefilter("ignore", ResourceWarning)
            started = Cluster(True, head_node_args=head)
        started.add_node(num_cpus=1, object_store_memory=STORE)
        yield started
        started.shutdown()


@pytest.mark.long
def test_failures_are_told_as_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    runs = [run_of("misbehave", 1, manner="raise", always=True), run_of("misbehave", 1)]
    here = run_grid(runs, tmp_path / "here", executor=InProcess())
    runs += [run_of("misbehave", manner="kill", always=True), run_of("misbehave", manner="die")]
    there = run_grid(runs, tmp_path / "there", executor=RayCluster(cluster.address))
    assert not ray.is_initialized()
    columns = [x for x in here if x not in ("seconds", "always")]
    assert here[columns].equals(there[columns][:2])
    assert there["status"].tolist() == ["failed", "done", "failed", "done"]
    assert "memory" in there["error"][2] and there["attempts"][3] == 1, "Ray tries again itself"
    said = (tmp_path / "there" / runs[0].folder / "error.txt").read_text()
    assert "workers.py" in said and "attempt 2 of 2: RuntimeError" in said


@pytest.mark.long
def test_threads_processes_and_the_ray_of_the_caller(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [run_of("linger", seed, until="/") for seed in range(3)]
    ray.init(cluster.address, log_to_driver=False)
    try:
        run_grid(runs, "out", executor=RayCluster(workers=1))
        again = run_grid(runs, "out", executor=RayCluster())
        table = run_grid([run_of("surroundings")], "out", executor=RayCluster("none"))
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
def test_leaving_ends_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "run.json").touch()
    executor = RayCluster(cluster.address)
    with executor:
        never = {"until": str(tmp_path / "never")}
        executor.submit(Task("tests.experiments.workers:linger", never, 0, folder))
        wait_for((folder / "process.txt").exists)
        process = int((folder / "process.txt").read_text())
    assert not ray.is_initialized()
    wait_for(lambda: not psutil.pid_exists(process))  # it would never end by itself
    assert not (folder / "result.json").exists()


@pytest.mark.long
def test_nodes_that_are_too_small_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    for room, words in (({"cpus": 2}, "2 CPUs and 0 GPUs"), ({"gpus": 0.5}, "0.5 GPUs")):
        with pytest.raises(KeyFiltersError, match=words):
            run_grid([run_of()], tmp_path, executor=RayCluster(cluster.address, **room))
        assert not ray.is_initialized()
    assert not list(tmp_path.rglob("calls.txt"))


def test_a_node_that_lacks_the_folder_or_has_another_version(tmp_path: Path) -> None:
    function, folder = "tests.experiments.workers:measure", tmp_path / "elsewhere"
    assert "does not see" in str(_perform_here(Task(function, {}, 0, folder), str(tmp_path)))
    folder.mkdir()
    (folder / "run.json").touch()
    other = Task(function, {}, 0, folder, identity={"versions": {"torch": "1.0"}})
    assert "another keyfilters or other packages" in str(_perform_here(other, str(tmp_path)))
    own = Task(function, {}, 0, folder, identity=run_of().identity)
    where = Path.cwd()
    try:
        assert _perform_here(own, str(tmp_path)) is None and (folder / "result.json").exists()
        assert _perform_here(own, str(tmp_path)) is None
    finally:
        os.chdir(where)
    assert (folder / "calls.txt").read_text() == "called\n", "what is done is not done again"


def test_refusals_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A port at which nothing listens, and what is no address.
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"):
        with pytest.raises(KeyFiltersError, match=f"cannot reach a Ray cluster at {address}"):
            run_grid([run_of()], tmp_path, executor=RayCluster(address))
    for bad in ({"cpus": 0}, {"gpus": -1}, {"gpus": 1.5}, {"cpus": float("nan")}):
        with pytest.raises(KeyFiltersError, match="more than 0 CPUs"):
            RayCluster(**bad)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="ray"):
        run_grid([run_of()], tmp_path, executor=RayCluster())


def test_executors_by_name() -> None:
    found = executor_from("ray", "auto", 2, 0.5)
    assert isinstance(found, RayCluster) and (found.cpus, found.gpus) == (2, 0.5)
    local: Any = executor_from("local", workers=3)
    assert isinstance(local, LocalProcesses) and local.workers == 3
    with pytest.raises(KeyFiltersError, match="no executor 'rey'"):
        executor_from("rey")
    for given in ({"address": "auto"}, {"gpus": 1}):
        with pytest.raises(KeyFiltersError, match="--executor ray"):
            executor_from("local", **given)


@pytest.mark.long
def test_a_lost_node_costs_no_attempt(cluster: Cluster, tmp_path: Path) -> None:
    released = tmp_path / "released"
    runs = [run_of("linger", seed, until=str(released)) for seed in range(8)]
    [node] = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    def has_begun_there() -> bool:
        started = [tmp_path / run.folder / "process.txt" for run in runs]
        begun = {int(file.read_text()) for file in started if file.exists()}
        return bool(begun & {process.pid for process in raylet.children()})

    def lose() -> None:
        wait_for(has_begun_there)
        processes = raylet.children(recursive=True)
        cluster.remove_node(node, allow_graceful=False)
        for process in processes:  # they would live on for a while
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes)
        released.touch()

    loser = threading.Thread(target=lose)
    loser.start()
    table = run_grid(runs, tmp_path, executor=RayCluster(cluster.address))
    loser.join()
    assert not cluster.worker_nodes
    assert (table["status"] == "done").all() and (table["attempts"] == 1).all()
    assert sorted(calls(tmp_path, run) for run in runs) == [1] * 7 + [2]

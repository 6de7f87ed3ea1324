from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from keyfilters.bank import FilterBank, Layer
from keyfilters.clusters import Atlas
from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.experiments import LocalProcesses, RayCluster, run_grid
from keyfilters.experiments.executors import Task, pieces_on
from keyfilters.experiments.ray_cluster import _do_here, _perform_here, executor_from
from keyfilters.experiments.run import versions
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


def nodes_and_sizes(part: slice) -> tuple[str, int, int]:
    """Where a part was done, how large it is, and with how many threads."""
    import torch

    time.sleep(0.5)  # so that one node does not do all of them
    return ray.get_runtime_context().get_node_id(), part.stop - part.start, torch.get_num_threads()


def refuses(part: slice) -> None:
    """Raise what a user can mend."""
    raise KeyFiltersError(f"cannot do {part.start} to {part.stop}")


@pytest.mark.long
def test_parts_of_a_work_go_to_all_nodes_and_come_in_order(cluster: Cluster) -> None:
    parts = [slice(0, n) for n in range(1, 9)]
    with RayCluster(cluster.address) as executor:
        found = list(executor.map(nodes_and_sizes, parts))
        with pytest.raises(KeyFiltersError, match="cannot do 0 to 1"):
            list(executor.map(refuses, parts))
    assert not ray.is_initialized()
    assert len({node for node, _, _ in found}) == 2
    assert [size for _, size, _ in found] == [part.stop for part in parts]
    assert {threads for _, _, threads in found} == {1}
    local = LocalProcesses().map(lambda part: part.stop, parts)
    assert list(local) == [part.stop for part in parts]


@pytest.mark.long
def test_an_atlas_on_a_cluster_is_the_same_to_the_bit(cluster: Cluster) -> None:
    weight = np.random.default_rng(0).standard_normal((3000, 3, 3)).cumsum(1).cumsum(2)
    layers = [
        Layer("net", f"conv{i}", part.astype(np.float32), (1, 1), (1, 1), i / 2)
        for i, part in enumerate(np.split(weight, 3))
    ]
    bank = FilterBank(layers)
    here = Atlas(seeds=1).fit(bank)
    mapped: list[int] = []

    class Counting(RayCluster):
        def map(self, work: Any, parts: Any) -> Any:
            mapped.append(len(parts))
            return super().map(work, parts)

    with pieces_on(Counting(cluster.address)):
        there = Atlas(seeds=1).fit(bank)
    assert len(mapped) >= 2 and max(mapped) >= 2, "matching and describing, in several parts"
    assert there.table_.equals(here.table_)
    assert there.claims_.equals(here.claims_) and there.coverage_.equals(here.coverage_)
    own, other = here.sizes_[(3, 3)], there.sizes_[(3, 3)]
    np.testing.assert_array_equal(other.matched.components, own.matched.components)


def test_a_part_is_refused_where_other_packages_are() -> None:
    own = versions()
    assert _do_here(lambda part: part.stop, slice(0, 3), own) == 3
    with pytest.raises(KeyFiltersError, match="another keyfilters or other packages"):
        _do_here(lambda part: part.stop, slice(0, 3), own | {"torch": "1.0"})


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

"""Where the runs of a grid go, by name."""

from __future__ import annotations

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.experiments.processes import Executor, in_processes
from keyfilters.experiments.ray_cluster import RayCluster

__all__ = ["EXECUTORS", "executor_from"]

EXECUTORS = ("local", "ray")


def executor_from(
    name: str = "local", address: str = "", cpus: float = 1, gpus: float = 0
) -> Executor:
    """Return an executor for `run_grid`.

    Args:
        name: ``"local"``, processes of this machine; or ``"ray"``, a `RayCluster`.
        address: of the cluster; empty: a Ray on this machine only.
        cpus: for each run on a cluster.
        gpus: for each run on a cluster.

    Raises:
        KeyFiltersError: an unknown name, or options of a cluster without one.

    >>> executor_from("ray", "auto", 2, 0.5)
    RayCluster(address='auto', cpus=2, gpus=0.5)
    """
    if name not in EXECUTORS:
        known = f"{' or '.join(EXECUTORS)} is expected{nearest(name, EXECUTORS)}"
        raise KeyFiltersError(f"there is no executor {name!r}; {known}")
    if name == "ray":
        return RayCluster(address, cpus, gpus)
    asked = {"--address": (address, ""), "--cpus-per-run": (cpus, 1), "--gpus-per-run": (gpus, 0)}
    for option, (value, default) in asked.items():
        if value != default:
            raise KeyFiltersError(f"{option} {value} is for a cluster; type also: --executor ray")
    return in_processes

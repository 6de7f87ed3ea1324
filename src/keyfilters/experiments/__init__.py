"""Experiments: grids of runs over factors and seeds, and what their numbers support."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyfilters.experiments.comparison import compare as compare
    from keyfilters.experiments.comparison import summarise as summarise
    from keyfilters.experiments.executors import LocalProcesses as LocalProcesses
    from keyfilters.experiments.experiment import Experiment as Experiment
    from keyfilters.experiments.experiment import Shared as Shared
    from keyfilters.experiments.grid import run_grid as run_grid
    from keyfilters.experiments.perform import run_experiment as run_experiment
    from keyfilters.experiments.ray_cluster import RayCluster as RayCluster
    from keyfilters.experiments.run import Run as Run

# Public name -> module that holds it. Imported on first use, since the command line's --help reads
# the experiments' options and must not wait for torch.
_PUBLIC = {
    "Experiment": "experiment",
    "LocalProcesses": "executors",
    "RayCluster": "ray_cluster",
    "Run": "run",
    "Shared": "experiment",
    "compare": "comparison",
    "run_experiment": "perform",
    "run_grid": "grid",
    "summarise": "comparison",
}
EXPERIMENTS = {
    "initialization": "initialization",
    "transfer": "transfer",
    "depth-curve": "depth_curve",
    "replacement": "replacement",
    "frozen-keys": "frozen_keys",
    "emergence": "emergence",
    "structure": "structure",
}

__all__ = [*sorted(_PUBLIC), "EXPERIMENTS"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)

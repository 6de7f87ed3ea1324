"""Experiments: grids of runs over conditions and seeds, and what their numbers support."""

from keyfilters.experiments.ray_cluster import RayCluster
from keyfilters.experiments.results import failures, read_curves
from keyfilters.experiments.runner import run_grid
from keyfilters.experiments.runs import Run, grid
from keyfilters.experiments.statistics import compare, epochs_to_reach, sentence, summarise

__all__ = [
    "RayCluster",
    "Run",
    "compare",
    "epochs_to_reach",
    "failures",
    "grid",
    "read_curves",
    "run_grid",
    "sentence",
    "summarise",
]

"""Grids whose runs build on each other: networks that lend their weights are trained first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import pandas as pd

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.processes import Executor, Function
from keyfilters.experiments.results import failures
from keyfilters.experiments.runner import check_grid, run_grid
from keyfilters.experiments.runs import Run

__all__ = ["How", "run_stages"]


class How(TypedDict, total=False):
    """How the runs of an experiment are performed, see `run_grid`."""

    workers: int | None
    progress: Callable[[str], object] | None
    executor: Executor


def run_stages(
    stages: Sequence[tuple[Sequence[Run], Function]], out: str | os.PathLike[str], how: How
) -> list[pd.DataFrame]:
    """Perform grids in one folder, one after another.

    Args:
        stages: (runs, the function that performs each), …; those of a later stage may read the
            folders of an earlier one. A run may be asked for twice; a stage may be empty.
        out: folder of them all.
        how: see `How`.

    Returns:
        The table of each stage that is not empty.

    Raises:
        KeyFiltersError: as `run_grid`; or a run of any stage but the last has failed.
    """
    grids = [(_once(runs), function) for runs, function in stages if runs]
    for runs, function in grids:
        check_grid(runs, function, out)
    tables = []
    for place, (runs, function) in enumerate(grids, 1):
        tables.append(run_grid(runs, function, Path(out), **how))
        failed = failures(tables[-1])
        if failed and place < len(grids):
            raise KeyFiltersError(f"a network that others depend on failed: {failed[0]}")
    return tables


def _once(runs: Sequence[Run]) -> list[Run]:
    """Leave out runs that are asked for again; others of their name stay, and are refused later."""
    found: list[Run] = []
    for run in runs:
        if run not in found:
            found.append(run)
    return found

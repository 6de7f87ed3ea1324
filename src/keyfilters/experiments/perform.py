"""Performing an experiment: its runs, and the record from which its page is drawn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.grid import run_grid
from keyfilters.experiments.record import record_of
from keyfilters.experiments.results import read_record
from keyfilters.experiments.single_run import forget

if TYPE_CHECKING:
    from keyfilters.experiments.executors import Executor
    from keyfilters.experiments.experiment import Experiment

__all__ = ["run_experiment"]


def run_experiment(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    progress: Callable[[str], object] = lambda words: None,
) -> dict[str, Any]:
    """Perform an experiment in a folder, and return its record; the same call goes on there.

    Args:
        experiment: what is done.
        out: folder of its runs.
        executor: see `run_grid`.
        progress: see `run_grid`.

    Returns:
        The record, see `record_of`.

    Raises:
        KeyFiltersError: as `run_grid`; or nothing that can be compared has run.
    """
    forget()
    table = run_grid(experiment.runs, out, executor=executor, progress=progress)
    extra, problems = {}, []
    for title, run in experiment.extra.items():
        try:
            run_grid([run], out, executor=executor, progress=progress)
            extra[title] = read_record(Path(out, run.folder, "result.json"))["result"]
        except KeyFiltersError as error:
            problems.append(f"{title}: {error}")
    return record_of(experiment, table, Path(out), extra, problems)

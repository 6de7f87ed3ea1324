"""What a grid of runs has found: one table, the failures in words, and the lists of its results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.run import Run

__all__ = ["failures", "read_lists", "read_record", "table_of"]


def table_of(runs: Sequence[Run], out: Path, errors: Mapping[str, tuple[str, int]]) -> pd.DataFrame:
    """Return the table of all runs; see `run_grid`.

    Args:
        runs: those without an error have their ``result.json``.
        out: folder of the grid.
        errors: key of a failed run → (first line of its error, attempts).
    """
    rows = []
    for run in runs:
        row: dict[str, Any] = {**run.factors, "seed": run.seed}
        result: dict[str, Any] = {}
        error, attempts = errors.get(run.key, ("", 0))
        own: dict[str, Any] = {"seconds": np.nan, "attempts": attempts, "status": "failed"}
        if not error:
            record = read_record(out / run.folder / "result.json")
            result = {k: v for k, v in record["result"].items() if not isinstance(v, list | dict)}
            own = {"seconds": record["seconds"], "attempts": record["attempts"], "status": "done"}
        rows.append((row, result, {**own, "error": error, "folder": str(run.folder)}))
    parts = (pd.DataFrame(list(part), dtype=object) for part in zip(*rows, strict=True))
    table = pd.concat([part.infer_objects() for part in parts], axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def failures(table: pd.DataFrame) -> list[str]:
    """Return one sentence for every failed run of a table of `run_grid`."""
    return [
        f"a run of seed {row['seed']} failed in {row['attempts']} attempts: {row['error']} "
        f"(see {row['folder']}/error.txt)"
        for row in table[table["status"] == "failed"].to_dict("records")
    ]


def read_lists(table: pd.DataFrame, out: str | os.PathLike[str], name: str) -> list[list[float]]:
    """Return a list of every run's result, such as the accuracy after each epoch.

    Args:
        table: of `run_grid`.
        out: folder of the grid.
        name: of the list; a run that has failed, or has no such list, gives an empty one.
    """
    found = []
    for row in table.to_dict("records"):
        done = row["status"] == "done"
        result = read_record(Path(out, row["folder"], "result.json"))["result"] if done else {}
        value = result.get(name, [])
        found.append(value if isinstance(value, list) else [])
    return found


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json`` or ``result.json``.

    Raises:
        KeyFiltersError: the file is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no record")
    except (OSError, ValueError, RecursionError) as error:
        raise KeyFiltersError(f"cannot read {path} ({error}); delete its folder") from error
    return found

"""What a grid of runs has found: one table, the failures in words, the learning curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.experiments.runs import Run
from keyfilters.options import flat

__all__ = ["collect", "failures", "read_curves", "read_record"]


def collect(
    runs: Sequence[Run], out: Path, errors: Mapping[str, str], attempts: int
) -> pd.DataFrame:
    """Return the table of all runs; see `run_grid`.

    Args:
        runs: those without an error have their ``result.json``.
        out: folder of the grid.
        errors: folder of a failed run → last line of its error.
        attempts: how often a failed run was tried.
    """
    rows = []
    for run in runs:
        row = {"condition": run.condition, "seed": run.seed, **flat(run.options, "options.")}
        folder = str(run.folder)
        if folder in errors:
            own = {"seconds": np.nan, "attempts": attempts, "status": "failed"}
            result = {}
        else:
            record = read_record(out / run.folder / "result.json")
            own = {"seconds": record["seconds"], "attempts": record["attempts"], "status": "done"}
            result = {k: v for k, v in record["result"].items() if not isinstance(v, list | dict)}
        rows.append((row, result, {**own, "error": errors.get(folder, ""), "folder": folder}))
    first, results, last = (pd.DataFrame(part) for part in zip(*rows, strict=True))
    return pd.concat([first, results, last], axis=1)


def failures(table: pd.DataFrame) -> list[str]:
    """Return one sentence for every failed run of a table of `run_grid`."""
    return [
        f"{row.condition}, seed {row.seed}, failed in {row.attempts} of {row.attempts} attempts: "
        f"{row.error} (see {row.folder}/error.txt)"
        for row in table[table["status"] == "failed"].itertuples()
    ]


def read_curves(
    table: pd.DataFrame, out: str | os.PathLike[str], name: str
) -> dict[str, NDArray[np.float64]]:
    """Read a list of numbers, such as the accuracy after every epoch, of all finished runs.

    Args:
        table: of `run_grid`.
        out: folder of the grid.
        name: of the list in the results.

    Returns:
        condition → ``(seeds, epochs)`` in the order of the table; shorter lists end in NaN.

    Raises:
        KeyFiltersError: a result has no such list.
    """
    found: dict[str, list[list[float]]] = {}
    for row in table[table["status"] == "done"].itertuples():
        result = read_record(Path(out, row.folder, "result.json"))["result"]
        if not isinstance(result.get(name), list):
            lists = [key for key, value in result.items() if isinstance(value, list)]
            known = f"it has the lists {', '.join(lists)}" if lists else "it has no list"
            tail = nearest(name, lists)
            raise KeyFiltersError(f"{row.folder} has no list {name!r}; {known}{tail}")
        found.setdefault(row.condition, []).append(result[name])
    return {
        condition: np.array([c + [np.nan] * (max(map(len, curves)) - len(c)) for c in curves])
        for condition, curves in found.items()
    }


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json`` or ``result.json``.

    Raises:
        KeyFiltersError: the file is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeyFiltersError(f"cannot read {path} ({error}); delete its folder") from error
    return found

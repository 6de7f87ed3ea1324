"""Any experiment as one self-contained HTML page: answers first, then what they rest on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError
from keyfilters.report.experiment_figures import dot_plot, learning_curves, shade
from keyfilters.report.template import render, write_page

__all__ = ["ExperimentReport", "Matrix", "render_experiment", "write_experiment"]

RUNS = ("condition", "seed", "value")
CONDITIONS = ("condition", "seeds", "missing", "mean", "sd", "low", "high")
COMPARISONS = (
    *("condition", "reference", "seeds", "missing", "difference", "low", "high"),
    *("p_holm", "effect"),
)


@dataclass(frozen=True)
class Matrix:
    """A table of numbers, source × target say, drawn with its text in coloured cells.

    Attributes:
        values: the numbers; the names of its index and its columns say what they are.
        caption: what a cell says.
        text: what is written into the cells; the numbers if None.
        middle: value that is drawn white, red above and blue below it; None for shades of blue.
    """

    values: pd.DataFrame
    caption: str
    text: pd.DataFrame | None = None
    middle: float | None = None


@dataclass(frozen=True)
class ExperimentReport:
    """What the page of an experiment shows; numbers are drawn as they are given, in `unit`.

    Attributes:
        title: of the page.
        explanation: one paragraph for someone who has not read the papers.
        answers: (question, the sentence that the numbers support), …
        short: the result in one or two sentences, shown before all answers.
        measure: what was measured, with its unit, such as ``"top-1 accuracy, %"``.
        unit: of differences, such as ``"points"``.
        runs: one row a run: condition, seed, value (NaN for a failed one).
        conditions: one row a condition: condition, seeds, missing, mean, sd, low, high (95 %).
        comparisons: one row a comparison: condition, reference, seeds, missing, difference, low,
            high, p_holm, effect, and the question if there are several; None where nothing is
            compared.
        curves: panel → condition → ``(seeds, epochs)``; a panel is best read with up to 8 of them.
        axes: panel → (name of its axis, places on it, what is drawn or empty), where that is not
            the epochs.
        curves_measure: what the curves show; `measure` if empty.
        matrices: further tables of numbers.
        options: the recipe: name → value.
        failures: one sentence a failed run.
        environment: versions, hardware, date: name → value.
        command: what was typed.
        seconds: of the whole experiment.
        digits: decimals of the numbers.
    """

    title: str
    explanation: str
    answers: Sequence[tuple[str, str]]
    measure: str
    runs: pd.DataFrame
    conditions: pd.DataFrame
    comparisons: pd.DataFrame | None = None
    unit: str = "points"
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, Sequence[float], str]] = field(default_factory=dict)
    curves_measure: str = ""
    matrices: Sequence[Matrix] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: float | None = None
    digits: int = 1
    short: str = ""


def write_experiment(report: ExperimentReport, path: str | os.PathLike[str]) -> Path:
    """Write the page of an experiment: one file that opens from disk without a network.

    Args:
        report: what it shows.
        path: where to; the folder is made if need be.

    Returns:
        The path written.

    Raises:
        KeyFiltersError: as `render_experiment`.
    """
    return write_page(render_experiment(report), path)


def render_experiment(report: ExperimentReport) -> str:
    """Return the page as HTML text.

    Raises:
        KeyFiltersError: a table lacks a column, or the text of a matrix has another shape.
    """
    _check("runs", report.runs, RUNS)
    _check("conditions", report.conditions, CONDITIONS)
    comparisons = report.comparisons
    if comparisons is not None and len(comparisons):
        _check("comparisons", comparisons, COMPARISONS)
    return render(
        "experiment.html.j2",
        report=report,
        done=int(report.runs["value"].notna().sum()),
        seeds=report.runs["seed"].nunique(),
        conditions=[_condition(row, report.digits) for row in _records(report.conditions)],
        comparisons=[_comparison(row, report.digits) for row in _records(comparisons)],
        dots=dot_plot(report.runs, report.conditions, report.measure),
        curves=[_chart(report, panel, curves) for panel, curves in report.curves.items() if curves],
        matrices=[_matrix(matrix, report.digits) for matrix in report.matrices],
        options=dict(report.options),
        environment=dict(report.environment),
        duration=_duration(report.seconds),
    )


def _chart(report: ExperimentReport, panel: str, curves: Mapping[str, NDArray[np.float64]]) -> str:
    name, at, measure = report.axes.get(panel, ("epoch", (), ""))
    measure = measure or report.curves_measure or report.measure
    return learning_curves(panel, curves, measure, across=name, at=at)


def _condition(row: Mapping[str, Any], digits: int) -> dict[str, Any]:
    return {
        "condition": row["condition"],
        "seeds": row["seeds"],
        "missing": row["missing"],
        "mean": _number(row["mean"], digits),
        "interval": _interval(row, digits),
        "sd": _number(row["sd"], digits + 1),
    }


def _comparison(row: Mapping[str, Any], digits: int) -> dict[str, Any]:
    p = row["p_holm"]
    return {
        "question": row.get("question", ""),
        "pair": f"{row['condition']} − {row['reference']}",
        "seeds": row["seeds"],
        "missing": row["missing"],
        "difference": _number(row["difference"], digits, signed=True),
        "interval": _interval(row, digits),
        "p": "below 0.001" if p < 0.001 else _number(p, 3),
        "effect": _number(row["effect"], 1),
    }


def _matrix(matrix: Matrix, digits: int) -> dict[str, Any]:
    """Rows of cells, each with its text and its style."""
    values = matrix.values
    if matrix.text is None:
        text = [[_number(float(x), digits) for x in row] for row in values.to_numpy(dtype=float)]
    elif matrix.text.shape == values.shape:
        text = matrix.text.astype(str).to_numpy().tolist()
    else:
        raise KeyFiltersError(
            f"the text of a matrix is {matrix.text.shape}; {values.shape}, as its values, expected"
        )
    styles = shade(values, matrix.middle)
    names = values.index.name, values.columns.name
    return {
        "caption": matrix.caption,
        "corner": " \\ ".join(str(name) for name in names if name),
        "columns": list(values.columns),
        "rows": [
            (name, list(zip(words, style, strict=True)))
            for name, words, style in zip(values.index, text, styles, strict=True)
        ],
    }


def _interval(row: Mapping[str, Any], digits: int) -> str:
    if math.isnan(row["low"]):
        return "–"
    return f"{_number(row['low'], digits)} to {_number(row['high'], digits)}"


def _number(value: float, digits: int, *, signed: bool = False) -> str:
    """Write a number with the true minus sign; "–" for NaN."""
    if math.isnan(value):
        return "–"
    value = 0.0 if round(value, digits) == 0 else value
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def _duration(seconds: float | None) -> str:
    """Write a time in the unit that suits it."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _records(table: pd.DataFrame | None) -> list[dict[Any, Any]]:
    return [] if table is None else table.to_dict("records")


def _check(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    lacking = [column for column in columns if column not in table]
    if lacking:
        has = ", ".join(map(str, table))
        raise KeyFiltersError(f"the table {name} lacks {', '.join(lacking)}; it has {has}")

"""The record of any experiment as one self-contained page: answers first, then the numbers."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.errors import KeyFiltersError
from keyfilters.report.drawing import (
    INK,
    KIND_COLOURS,
    MUTED,
    WIDTH,
    legend_below,
    single_axes,
    to_svg,
)
from keyfilters.report.template import render, write_page
from keyfilters.texts import figure_label

__all__ = ["render_experiment", "write_experiment"]

COLOURS = list(KIND_COLOURS.values())[:8]
STYLES = ("-", "--", ":")  # after eight conditions the colours come again
FEW, FAR = 6, 4  # points marked one by one; a logarithmic axis reaches as many times further
PARTS = ("title", "explanation", "short", "measure", "runs", "conditions", "comparisons", "charts")
UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (0, "s"))


def write_experiment(record: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page of an experiment: one file that opens from disk without a network.

    Args:
        record: as `keyfilters.experiments.run_experiment` returns it, or read from record.json.
        path: of the page; a missing folder is made.

    Returns:
        The path written.

    Raises:
        KeyFiltersError: the record lacks a part.
    """
    return write_page(render_experiment(record), path)


def render_experiment(record: Mapping[str, Any]) -> str:
    """Return the page as HTML text.

    Raises:
        KeyFiltersError: as `write_experiment`.
    """
    if lacking := [name for name in PARTS if name not in record]:
        raise KeyFiltersError(f"the record of an experiment lacks {', '.join(lacking)}")
    questions: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["comparisons"]:
        questions.setdefault(row["question"], []).append(row)
    seconds = record.get("seconds") or 0
    size, unit = next(x for x in UNITS if seconds >= x[0])
    return render(
        "experiment.html.j2",
        record={"failures": [], "command": "", "options": {}, "environment": {}, **record},
        done=sum(run.get("status", "done") == "done" for run in record["runs"]),
        seeds=len({run["seed"] for run in record["runs"]}),
        duration=f"{seconds / (size or 1):.{1 if size else 0}f} {unit}",
        questions=questions,
        number=_number,
        dots=_dots(record),
        charts=[_chart(chart) for chart in record["charts"]],
        matrices=[{**x, "styles": _shade(x["values"])} for x in record.get("matrices", [])],
    )


def _dots(record: Mapping[str, Any]) -> str:
    """Draw one row a condition: a small dot a seed, below it the mean with its interval."""
    conditions, factors = record["conditions"], record.get("factors", [])
    values: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run.get("top1") is not None:
            values.setdefault(str([run.get(x) for x in factors]), []).append(run["top1"])
    figure, axes = single_axes(WIDTH, 0.5 * len(conditions) + 0.9)
    for y, row in enumerate(conditions):
        colour = COLOURS[y % len(COLOURS)]
        seen = values.get(str([row.get(x) for x in factors]), [])
        axes.plot(seen, np.full(len(seen), y + 0.17), "o", color=colour, alpha=0.55, markersize=4.5)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [y - 0.12] * 2, color=colour, linewidth=2.2)
        if row["mean"] is not None:
            axes.plot(row["mean"], y - 0.12, "o", color=colour, markersize=7.5)
    labels = ["\n".join(textwrap.wrap(figure_label(row["label"], 66), 32)) for row in conditions]
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", color="#e1e4ea", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(record["measure"])
    return to_svg(figure)


def _chart(chart: Mapping[str, Any]) -> str:
    """Draw the mean over the seeds at every place, and a band from lowest to highest."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    figure, axes = single_axes(WIDTH, 3.6 + 0.12 * len(chart["lines"]))
    places: Sequence[float] = chart["at"]
    for i, (name, seeds) in enumerate(chart["lines"].items()):
        table = pd.DataFrame([[np.nan if x is None else x for x in seed] for seed in seeds])
        at = np.asarray(places if len(places) else range(1, table.shape[1] + 1))
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        at, mark = at[: table.shape[1]], "o" if table.shape[1] <= FEW else None
        axes.fill_between(at, table.min(), table.max(), color=colour, alpha=0.14, linewidth=0)
        axes.plot(at, table.mean(), style, color=colour, marker=mark, markersize=4,
                  label=figure_label(name, 30))  # fmt: skip
    if len(places) and max(places) > FAR * len(places):
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e1e4ea", linewidth=0.8)
    axes.set_xlabel(chart["x"], color=MUTED)
    axes.set_ylabel("\n".join(textwrap.wrap(chart["measure"], 40)))
    axes.set_title(figure_label(chart["title"], 48))
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def _shade(values: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """Return a CSS style for each cell: from white (lowest) to blue, with ink that reads on it."""
    import matplotlib

    known = [x for row in values for x in row if x is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def style(value: float | None) -> str:
        if value is None:
            return ""
        at = 0.75 * ((value - low) / (high - low) if high > low else 0.5)
        red, green, blue, _ = matplotlib.colormaps["Blues"](at)
        ink = INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "#fff"
        return f"background:{matplotlib.colors.to_hex((red, green, blue))};color:{ink}"

    return [[style(value) for value in row] for row in values]


def _number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Write a number with the true minus sign; "–" where there is none."""
    if value is None:
        return "–"
    value = 0.0 if round(value, digits) == 0 else value
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")

"""What came out of an experiment, as plain JSON: everything that its page shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.environment import environment
from keyfilters.experiments.comparison import compare, summarise
from keyfilters.experiments.experiment import Experiment, Panel
from keyfilters.experiments.questions import TOP1
from keyfilters.experiments.results import failures, read_lists
from keyfilters.experiments.sentences import headline, sentence

__all__ = ["record_of", "write_record"]

Chart = dict[str, Any]


def record_of(
    experiment: Experiment,
    table: pd.DataFrame,
    out: Path,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what came out of an experiment.

    Args:
        experiment: what was done.
        table: of its runs.
        out: folder of the grid, for the lists of the results.
        extra: title → result of further runs, whose lists over steps become charts.
        problems: why some of these are missing.

    Returns:
        name, title, explanation, measure, factors, runs (rows of the table), conditions (label, and
        as `summarise`), comparisons (as `compare`, with label, reference_label and sentence),
        short (the claims of the page), charts (title, x, measure, lines: label → one list of
        numbers a seed), matrices, failures, seconds and environment.
    """
    if experiment.derive is not None:
        table = experiment.derive(table, out)
    factors = experiment.factors
    conditions = summarise(table, factors, TOP1)
    for name in experiment.columns:
        conditions[name] = summarise(table, factors, name)["mean"]
    conditions.insert(0, "label", [experiment.label(x) for x in _rows(conditions, factors)])
    comparisons = compare(table, factors, experiment.questions)
    rows = comparisons.to_dict("records")
    for row in rows:
        row["label"] = experiment.label(row["condition"])
        row["reference_label"] = experiment.label(row["reference"])
        row["sentence"] = sentence(row, experiment.label)
    charts = [x for panel in experiment.panels for x in _charts(experiment, panel, table, out)]
    charts += [_extra_chart(title, result) for title, result in (extra or {}).items()]
    record = {
        "name": experiment.name,
        "title": experiment.title,
        "explanation": experiment.explanation,
        "measure": experiment.measure,
        "factors": factors,
        "runs": table.to_dict("records"),
        "conditions": conditions.to_dict("records"),
        "comparisons": rows,
        "short": headline(comparisons, experiment.label),
        "charts": [
            {**x, "lines": {k: line for k, line in x["lines"].items() if line}} for x in charts
        ],
        "matrices": _matrices(experiment, conditions),
        "failures": [*failures(table), *problems],
        "seconds": float(table["seconds"].sum()),
        "environment": environment(),
    }
    plain: dict[str, Any] = _plain(record)
    return plain


def write_record(record: Mapping[str, Any], out: Path) -> None:
    """Write ``record.json``, and its tables as table.csv, conditions.csv and comparisons.csv."""
    from keyfilters.files import write_whole

    write_whole(out / "record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name, rows in (("table", "runs"), ("conditions",) * 2, ("comparisons",) * 2):
        write_whole(out / f"{name}.csv", pd.DataFrame(record[rows]).to_csv(index=False))


def _charts(experiment: Experiment, panel: Panel, table: pd.DataFrame, out: Path) -> list[Chart]:
    """Return the charts of a panel: one for all, or one for each level of the factors it splits."""
    done = table[table["status"] == "done"]
    rows, seeds = _rows(done, experiment.factors), done["seed"].tolist()
    if panel.over:
        lists, places = [[x] for x in done[panel.value]], [row[panel.over] for row in rows]
    else:
        lists = read_lists(done, out, panel.value)
        places = read_lists(done, out, panel.at) if panel.at else [[] for _ in lists]
    charts: dict[str, Chart] = {}
    for levels, values, place, seed in zip(rows, lists, places, seeds, strict=True):
        split = {name: levels[name] for name in panel.split}
        if not values or place is None or (split and set(split.values()) == {None}):
            continue
        title = ", ".join(filter(None, [experiment.label(split) if split else "", panel.words]))
        start = {"title": title, "x": panel.across, "measure": panel.words, "lines": {}}
        chart = charts.setdefault(title, {**start, "at": [] if panel.over else place})
        rest = {k: x for k, x in levels.items() if k not in (*panel.split, panel.over)}
        line = chart["lines"].setdefault(experiment.label(rest), {} if panel.over else [])
        if panel.over:
            line.setdefault(place, {})[seed] = values[0]
        elif place == chart["at"]:  # a run of fewer steps has no place in it
            line.append(values)
    return [_over(chart) if panel.over else chart for chart in charts.values()]


def _over(chart: Chart) -> Chart:
    """Turn the values of a chart over a factor into one list of numbers a seed."""
    at = sorted({place for line in chart["lines"].values() for place in line})
    lines = {}
    for label, line in chart["lines"].items():
        seeds = sorted({seed for values in line.values() for seed in values})
        lines[label] = [[line.get(x, {}).get(seed) for x in at] for seed in seeds]
    return {**chart, "at": at, "lines": lines}


def _extra_chart(title: str, result: Mapping[str, Any]) -> Chart:
    lines = {k: [x] for k, x in result.items() if isinstance(x, list) and k != "steps"}
    names = {name.removeprefix("kind "): x for name, x in lines.items()}
    chart = {"title": title, "x": "optimiser step", "measure": "% of the filters"}
    return {**chart, "at": result.get("steps", []), "lines": names}


def _matrices(experiment: Experiment, conditions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table of means, rows by columns, where an experiment has one."""
    if experiment.matrix is None:
        return []
    _, across, value = experiment.matrix
    names = [name for name in experiment.factors if name != across]
    rows: dict[str, dict[str, Any]] = {}
    for row, levels in zip(conditions.to_dict("records"), _rows(conditions, names), strict=True):
        level = _plain(row[across])  # pandas has NaN for None in a column of texts
        column = "–" if level is None else experiment.label({across: level})
        rows.setdefault(experiment.label(levels), {})[column] = row[value]
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    if len(columns) < 2:  # the list of the conditions tells as much
        return []
    values = [[cells.get(column) for column in columns] for cells in rows.values()]
    caption = f"Mean of {experiment.measure if value == 'mean' else value}"
    return [{"caption": caption, "columns": columns, "rows": list(rows), "values": values}]


def _rows(table: pd.DataFrame, factors: Sequence[str]) -> list[dict[str, Any]]:
    rows = table[list(factors)].to_dict("records")
    return [{name: _plain(level) for name, level in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """Return what JSON knows: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(x) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and (isnan(value) or abs(value) == np.inf)):
        return None
    return int(value) if isinstance(value, float) and value == int(value) else value

"""The records that `keyfilters.experiments` writes: conditions, contrasts and the command."""

from __future__ import annotations

from typing import Any

from recorded import load, number, table
from statsmodels.stats.multitest import multipletests

__all__ = ["accuracy", "condition_table", "contrast", "contrast_table", "joint_table", "made_by"]


def accuracy(name: str, **factors: Any) -> str:
    """Return the mean of the condition with these factors in %."""
    return f"{_row(load(name)['conditions'], factors)['mean']:.1f} %"


def contrast(name: str, one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return by how many points a condition is above another, and the 95 % interval."""
    held = load(name)["comparisons"]
    found = [row for row in held if _has(row["condition"], one) and _has(row["reference"], other)]
    if not found:
        raise KeyError(f"{name}.json: no comparison of {one} with {other}")
    low, high = (_signed(found[0][x]) for x in ("low", "high"))
    return f"{_signed(found[0]['estimate'])} points (95 % interval {low} to {high})"


def condition_table(name: str) -> str:
    """Return the mean of every condition, its interval and its spread over the seeds."""
    body = [
        [x["label"], x["seeds"], f"{x['mean']:.1f} %", f"{x['low']:.1f} to {x['high']:.1f}",
         f"{x['sd']:.1f}"] for x in load(name)["conditions"]
    ]  # fmt: skip
    return table(["filters", "seeds", "mean top-1", "95 % interval", "standard deviation"], body)


def contrast_table(name: str) -> str:
    """Return every contrast of accuracies with its verdict."""
    body = [
        [x["question"], x["label"], x["reference_label"], _signed(x["estimate"]),
         f"{_signed(x['low'])} to {_signed(x['high'])}", number(x["p_holm"], 2), x["verdict"]]
        for x in load(name)["comparisons"] if x["value"] == "top1"
    ]  # fmt: skip
    header = [
        "question",
        "filters",
        "against",
        "points",
        "95 % interval",
        "p, corrected",
        "verdict",
    ]
    return table(header, body)


def joint_table(*names: str) -> str:
    """Return the contrasts of accuracies of several records, corrected together by Holm's method.

    A contrast that two records share, of the same runs, counts in each and is listed once.
    """
    held = [
        {"name": f"`{name}`", **row}
        for name in names for row in load(name)["comparisons"] if row["value"] == "top1"
    ]  # fmt: skip
    tests = [(row, kind) for row in held for kind in ("p", "p_equal") if row[kind] is not None]
    corrected = multipletests([row[kind] for row, kind in tests], method="holm")[1]
    listed = {
        (row["estimate"], row["low"], row["p"]): [
            row["label"], row["reference_label"],
            _signed(row["estimate"]) + row["unit"].removeprefix("points"),
            f"{_signed(row['low'])} to {_signed(row['high'])}", number(float(p), 2), row["name"],
        ]
        for (row, kind), p in zip(tests, corrected, strict=True) if kind == "p"
    }  # fmt: skip
    header = ["filters", "against", "points", "95 % interval", "p, corrected", "experiment"]
    return table(header, list(listed.values()))


def made_by(name: str) -> str:
    """Return the command, the date, the machine and the versions behind a record."""
    found = load(name)
    where = dict(found["environment"])
    date, machine, python = (where.pop(x) for x in ("date", "machine", "python"))
    versions = ", ".join(f"{key} {value}" for key, value in where.items())
    source = f"../../benchmarks/results/{name}.json"
    return (
        f"```\n{found['command']}\n```\n\n{len(found['runs'])} runs, "
        f"{found['seconds'] / 3600:.1f} core hours; {machine}; Python {python}; {versions}; "
        f"{date}. All figures: {{download}}`{name}.json <{source}>`.\n"
    )


def _row(rows: list[dict[str, Any]], factors: dict[str, Any]) -> dict[str, Any]:
    for row in rows:
        if _has(row, factors):
            return row
    raise KeyError(f"no row with {factors}")


def _has(row: dict[str, Any], factors: dict[str, Any]) -> bool:
    return all(name in row and row[name] == value for name, value in factors.items())


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")

"""The recorded figures of benchmarks/results, as numbers, sentences' parts and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr
from statsmodels.stats.multitest import multipletests

__all__ = [
    "about",
    "claim",
    "claims",
    "comparisons",
    "conditions",
    "corrected",
    "difference",
    "explained",
    "half_way",
    "kept",
    "kept_table",
    "load",
    "number",
    "percent",
    "rank_correlation",
    "result",
    "rows",
    "survived",
    "swept",
    "table",
    "top1",
]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NULLS = ("covariance", "phase", "tap-permuted", "white")


@cache
def load(name: str) -> dict[str, Any]:
    """Return a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def result(name: str, *path: Any) -> Any:
    """Return what stands in a file of results at a path of keys and positions."""
    found = load(name)["results"]
    for key in path:
        found = found[key]
    return found


def rows(name: str, *path: Any, **where: Any) -> list[dict[str, Any]]:
    """Return the rows of a table whose columns have the values given; at least one."""
    found = [row for row in result(name, *path) if all(row[k] == v for k, v in where.items())]
    if not found:
        raise KeyError(f"{name}.json, {path}: no row with {where}")
    return found


def about(name: str) -> str:
    """Return the command, the date, the machine and the versions behind a file of results."""
    found = load(name)["about"]
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    number = len(found.get("seeds") or ())
    seeds = f"{number} seed{'s' * (number > 1)}. " if number else ""
    source = f"../../benchmarks/results/{name}.json"
    return (
        f"```\n{found['command']}\n```\n\n{seeds}{found['machine']}; Python {found['python']}; "
        f"{versions}; {found['date']}. All figures: {{download}}`{name}.json <{source}>`.\n"
    )


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f} %"


def number(value: Any, digits: int = 3) -> str:
    """Return a number, or a text as it is."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def table(header: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(_whole(number(cell)) for cell in row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _whole(cell: str) -> str:
    """Keep a cell of figures, such as ``17 % (9–25)``, on one line."""
    if not cell[:1].isdigit() or len(cell) > 20:
        return cell
    return cell.replace(" ", "\u00a0").replace("–", "\u2060–\u2060")


def claim(bank: str, size: str, what: str) -> dict[str, Any]:
    """Return one claim of coverage.json."""
    return rows("coverage", bank, "claims", size=size, claim=what)[0]


def claims(*banks: tuple[str, str], only: Sequence[str] = ()) -> str:
    """Return the claims of banks and kernel sizes beside their nulls."""
    body = []
    for bank, size in banks:
        for row in rows("coverage", bank, "claims", size=size):
            if not only or row["claim"] in only:
                nulls = [percent(row[null]) for null in NULLS]
                beyond = "yes" if row["q"] < 0.05 and _held_out(row) else "no"
                body.append([f"{bank}, {size}", row["claim"], percent(row["value"]), *nulls,
                             percent(row["held_out"]), percent(row["covariance held out"]),
                             beyond])  # fmt: skip
    header = ["filters", "claim", "trained", "same covariance", "phases random", "taps shuffled",
              "white", "held out", "its null", "beyond chance"]  # fmt: skip
    return table(header, body)


def _held_out(row: dict[str, Any]) -> bool:
    held_out = row["held_out"]
    return held_out is None or all(held_out > row[f"{null} held out"] for null in NULLS)


def swept(bank: str, size: str, threshold: float, data: str = "filters") -> float:
    """Return what a code covers of filters or of a null at another threshold, of coverage.json."""
    where = {"method": "autoencoder 1-D", "threshold": threshold, "data": data}
    return rows("coverage", bank, size, "sweep", **where)[0]["coverage"]


def half_way(curve: str, condition: str) -> int:
    """Return the step at which half of what a curve of emergence.json gains is there."""
    held = result("emergence", "curves", curve)[condition]
    means = [mean(x) for x in zip(*held, strict=True)]
    half = (means[0] + means[-1]) / 2
    place = next(i for i, x in enumerate(means) if x >= half)  # of the steps 0, 1, 2, 4, …, last
    if place == len(means) - 1:
        raise ValueError(f"{curve} of {condition}: the number of the last step is not recorded")
    return 2 ** (place - 1) if place else 0


def rank_correlation(name: str, one: str, other: str) -> float:
    """Return Spearman's correlation of two results over the means of an experiment's conditions."""
    runs = result(name, "runs")
    kinds = dict.fromkeys(run["condition"] for run in runs)
    means = [
        [mean(run[x] for run in runs if run["condition"] == kind) for kind in kinds]
        for x in (one, other)
    ]
    return float(spearmanr(*means).statistic)


def explained(filters: str, column: str = "r² ≥ 0.64") -> float:
    """Return a share of matching.json: of the filters explained by one receptive field."""
    for row in result("matching", "explained"):
        if row["filters"].startswith(filters):
            return row[column]
    raise KeyError(filters)


def kept(keys: str, count: int, how: str) -> float:
    """Return the mean share of crops with the same first class, of replacement.json."""
    return mean(row["top1"] for row in rows("replacement", "runs", keys=keys, count=count, how=how))


def kept_table() -> str:
    """Return same first class by number of keys: mean, least and most of the seeds."""
    runs = result("replacement", "runs")
    counts = sorted({run["count"] for run in runs})
    body = []
    for keys, how in dict.fromkeys((run["keys"], run["how"]) for run in runs):
        cells = []
        for count in counts:
            held = [r["top1"] for r in runs
                    if (r["keys"], r["how"], r["count"]) == (keys, how, count)]  # fmt: skip
            cells.append(
                f"{percent(mean(held))} ({100 * min(held):.0f}–{100 * max(held):.0f})"
                if held
                else ""
            )
        body.append([f"{keys}, {how}", *cells])
    return table(["keys, replacement", *map(str, counts)], body)


def survived() -> str:
    """Return same first class on keys found in several ways, of survival.json, by their number."""
    counts = (4, 8, 16, 32)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result("survival"):
        found.setdefault(row["keys"], []).append(row)
    body = [
        [keys, *(percent(mean(row[f"top1 {n}"] for row in held)) for n in counts)]
        for keys, held in found.items()
    ]
    return table(["keys", *map(str, counts)], body)


def top1(name: str, condition: str, column: str = "top1") -> str:
    """Return the mean accuracy of a condition of an experiment, in %."""
    found = rows(name, "runs", condition=condition)
    return f"{mean(row[column] for row in found):.1f} %"


def conditions(name: str, *only: str) -> str:
    """Return the mean accuracy and its spread of every condition of an experiment."""
    found: dict[str, list[float]] = {}
    for run in result(name, "runs"):
        found.setdefault(run["condition"], []).append(run["top1"])
    body = [
        [condition, len(held), f"{mean(held):.1f} %", f"{stdev(held):.1f}"]
        for condition, held in found.items()
        if not only or condition in only
    ]
    return table(["condition", "seeds", "mean top-1", "standard deviation"], body)


def difference(name: str, condition: str, reference: str, *, sign: int = 1) -> str:
    """Return a difference of two conditions in points, with its interval."""
    row = rows(name, "comparisons", condition=condition, reference=reference)[0]
    low, high = sorted((sign * row["low"], sign * row["high"]))
    words = f"{sign * row['difference']:.1f} points (95 % interval {low:.1f} to {high:.1f})"
    return words.replace("-", "−")


def corrected(name: str) -> list[dict[str, Any]]:
    """Return the comparisons of an experiment with p-values corrected over all of them.

    Records of version 0.1.0 hold p-values that were corrected within each question.
    """
    held = [row for row in result(name, "comparisons") if row["p"] is not None]
    p = multipletests([row["p"] for row in held], method="holm")[1]
    return [{**row, "p_holm": float(x)} for row, x in zip(held, p, strict=True)]


def comparisons(name: str, *, question: str = "") -> str:
    """Return the comparisons of an experiment that are significant; of one question, or of all."""
    body = [
        [row["condition"], row["reference"], f"{row['difference']:+.1f}",
         f"{row['low']:+.1f} to {row['high']:+.1f}", number(row["p_holm"], 2)]
        for row in corrected(name)
        if row["p_holm"] < 0.05 and question in row["question"]
    ]  # fmt: skip
    header = ["condition", "reference", "difference, points", "95 % interval", "p, corrected"]
    return table(header, body)

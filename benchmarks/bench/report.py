"""What `make bench` leaves: every figure as JSON, a table to read, and the growth drawn."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from ..common import environment, markdown, write

FIGURE = "bench-growth.svg"
RIVALS = ("faiss-cpu", "pyscsp", "scipy", "safetensors", "pandas")
Row = dict[str, Any]


def about(command: str) -> dict[str, Any]:
    """Return machine, versions, seeds, date, command, and how busy the machine is now."""
    found = environment() | {"command": command, "seeds": [0], "processor": processor()}
    found["load average"] = [load()]
    for name in RIVALS:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = "absent"
    return found


def processor() -> str:
    """Return the name of the processor, with what it can that changes the speed of products."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split("\t: ", 1) for line in text.splitlines() if "\t: " in line)
    fields |= {k.strip(): v for k, v in fields.items()}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "amx_tile"}
    names = [fields.get("model name", platform.processor() or platform.machine()), *sorted(flags)]
    return ", ".join(names)


def load() -> float:
    """Return the load average of the last minute; a quiet machine has about that of one run."""
    return round(os.getloadavg()[0], 2)


def save(
    about: dict[str, Any],
    compared: list[Row],
    grown: list[Row],
    took: float,
    out: Path,
) -> None:
    """Write bench.json, bench.md and the figure into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    about = about | {"load average": [*about["load average"], load()]}
    parts = {
        subject.capitalize(): _compared(pd.DataFrame(rows))
        for subject, rows in _by_subject(compared).items()
    }
    if grown:
        draw(grown, out / FIGURE)
        parts["Growth"] = f"![Seconds and memory against filters]({FIGURE})\n\n{_grown(grown)}"
    limits = [row for row in [*compared, *grown] if row["met"] is not None]
    missed = [f"{r['ours']}, {r['work']}" for r in compared if r["met"] is False]
    missed += [f"{r['job']}, {r['filters']:,} filters" for r in grown if r["met"] is False]
    parts = {"In short": _short(about, len(limits), missed, took)} | parts
    data = {"compared": compared, "growth": grown, "seconds": took}
    write("bench", "Speed beside what one would use instead", about, data, parts, out, show=False)


def _short(about: dict[str, Any], limits: int, missed: list[str], took: float) -> str:
    over = "; over it: " + "; ".join(missed) if missed else ""
    return (
        f"{limits} figures have a limit{over}. Ratios are ours / the other's, medians over rounds "
        "in which all arms run in turn, with the middle half; below 1 ours is faster. The column "
        "of the processor is the same of processor time, on which other work on the machine weighs "
        f"less. Load average before and after: {about['load average']} on {about['processor']}. "
        f"The run took {took / 60:.0f} minutes."
        + "".join(f" **{part} failed: {why}.**" for part, why in about.get("failed", {}).items())
    )


def _by_subject(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["subject"], []).append(row)
    return found


def _compared(rows: pd.DataFrame) -> str:
    """Draw the rows of one subject as a table."""

    def quality(row: pd.Series) -> str:
        if not row["quality"] or pd.isna(row["quality ours"]):
            return ""
        other = row["quality beside"]
        beside = "–" if pd.isna(other) else f"{other:.3g}"
        return f"{row['quality']}: {row['quality ours']:.3g} / {beside}"

    table = pd.DataFrame(
        {
            "work": rows["work"],
            "ours": rows["ours"],
            "beside": rows["beside"],
            "ours takes": [_seconds(s, u) for s, u in rows[["seconds", "unit"]].values],
            "beside takes": [_seconds(s, u) for s, u in rows[["seconds beside", "unit"]].values],
            "ratio": [_number(x) for x in rows["ratio"]],
            "middle half": [
                f"{_number(a)} to {_number(b)}"
                for a, b in rows[["ratio, low", "ratio, high"]].values
            ],
            "processor": [_number(x) for x in rows["ratio, processor"]],
            "limit": [_limit(*pair) for pair in rows[["limit", "limit, s"]].values],
        }
    )
    table["ours / beside"] = rows.apply(quality, axis=1)
    return markdown(table if table["ours / beside"].any() else table.iloc[:, :-1])


def _seconds(value: float, unit: str) -> str:
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name} a {unit}"
    return f"{value:.2g} s a {unit}"


def _limit(ratio: float | None, seconds: float | None) -> str:
    parts = [f"{ratio:.3g}"] if pd.notna(ratio) else []
    return ", ".join([*parts, f"{seconds:g} s"] if pd.notna(seconds) else parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _grown(rows: list[Row]) -> str:
    table = pd.DataFrame(rows)
    shown = {
        "job": table["job"],
        "filters": [f"{n:,}" for n in table["filters"]],
        "seconds": table["seconds"],
        "peak memory, GB": table["memory"],
        "page, MB": table["page"],
        "filters alone, MB": table["filters"] * 49 * 4 / 1e6,
        "limits": table["limits"],
        "left out: would take, s": table["left_out"],
    }
    return markdown(pd.DataFrame(shown))


def draw(rows: list[Row], path: Path) -> None:
    """Draw seconds and peak memory against the number of filters, both axes logarithmic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    table = pd.DataFrame(rows).dropna(subset=["seconds"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for job, part in table.groupby("job", sort=False):
        ours = str(job).lower().startswith("key") or str(job).startswith("kf")
        style = {"marker": "o", "ms": 3, "lw": 1.8 if ours else 1, "ls": "-" if ours else "--"}
        for axis, column in zip(axes, ("seconds", "memory"), strict=True):
            axis.plot(part["filters"], part[column], label=job, **style)
    for axis, name in zip(axes, ("seconds", "peak memory of the process, GB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="filters of 7×7", ylabel=name)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):
        figure.savefig(path, metadata={"Date": None})

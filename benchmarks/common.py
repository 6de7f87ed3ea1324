"""What every benchmark writes beside its figures: command, machine, versions, date."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS = Path(__file__).parent / "results"


def environment(seeds: int | None = None) -> dict[str, Any]:
    """Describe this run."""
    packages = ("keyfilters", "torch", "scikit-learn", "numpy", "timm")
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "seeds": list(range(seeds)) if seeds else None,
    }


def write(
    name: str,
    title: str,
    about: dict[str, Any],
    data: Any,
    parts: dict[str, str],
    folder: Path = RESULTS,
    show: bool = True,
) -> None:
    """Write ``name.json`` with all figures and ``name.md`` with the tables to read."""
    folder.mkdir(exist_ok=True)
    text = json.dumps({"about": about, "results": data}, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        f"# {title}\n",
        f"`{about['command']}`, {about['date']}; {about['machine']}; Python {about['python']}; "
        f"{versions}" + (f"; seeds {about['seeds']}" if about["seeds"] else "") + ".\n",
    ]
    for heading, body in parts.items():
        lines += [f"## {heading}\n", body + "\n"]
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    if show:
        print("\n".join(lines))


def markdown(table: pd.DataFrame, percent: tuple[str, ...] = ()) -> str:
    """Render a frame as a Markdown table; the columns named are shares."""

    def cell(column: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and value != value):
            return "–"
        if column in percent:
            return f"{100 * value:.1f} %"
        if isinstance(value, float) and value != int(value):
            return f"{value:.3g}"
        return f"{value:,.0f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    rows = [[cell(c, v) for c, v in zip(table.columns, row, strict=True)] for row in table.values]
    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "| " + " | ".join("---" for _ in table.columns) + " |"
    return "\n".join([header, rule, *("| " + " | ".join(row) + " |" for row in rows)])

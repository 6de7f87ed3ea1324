"""How much of the code the tests run: statements and branches, by room.

    pip install pytest-cov
    python -m pytest -m 'not long' --cov=keyfilters --cov-branch --cov-report=json:out/covered.json
    python benchmarks/covered.py out/covered.json

Writes a part of results/hardening.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from hardening import record

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")
REMARKS = ["Long tests are left out. What runs in other processes is not counted."]


def room(path: str) -> str:
    """Return the folder of the package in which a file lies; its own files are one room."""
    parts = Path(path).parts
    inside = parts[parts.index("keyfilters") + 1 :]
    return inside[0] if len(inside) > 1 else "keyfilters"


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the counts of every room and of all, with the shares that were run in %."""
    files = pd.DataFrame(
        {"room": room(path)} | {x: found["summary"][x] for x in COUNTS}
        for path, found in report["files"].items()
    )
    counts = files.groupby("room")[list(COUNTS)].sum()
    counts.loc["all"] = counts.sum()
    statements, lines, branches, taken = (counts[x] for x in COUNTS)
    table = pd.DataFrame(
        {
            "statements": statements,
            "run, %": 100 * lines / statements,
            "branches": branches,
            "taken, %": 100 * taken / branches,
            "both, %": 100 * (lines + taken) / (statements + branches),
        }
    )
    return table.round(1).reset_index().to_dict("records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="a JSON report of coverage.py")
    given = parser.parse_args()
    found = rows(json.loads(given.report.read_text(encoding="utf-8")))
    print(pd.DataFrame(found).to_string(index=False))
    command = "python benchmarks/covered.py REPORT"
    record("covered", "Code that the tests run", found, [], REMARKS, command)


if __name__ == "__main__":
    main()

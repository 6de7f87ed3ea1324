"""Shares of code that tests run, by room, from a report of coverage.py."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


def test_files_are_added_up_by_room(benchmark_script: Callable[[str], ModuleType]) -> None:
    covered = benchmark_script("covered")

    def found(*counts: int) -> dict:
        return {"summary": dict(zip(covered.COUNTS, counts, strict=True))}

    report = {"files": {
        "src/keyfilters/cli/read.py": found(10, 9, 4, 1),
        "src/keyfilters/cli/train.py": found(30, 30, 0, 0),
        "/home/x/src/keyfilters/bank.py": found(60, 60, 6, 6),
    }}  # fmt: skip
    rows = {row["room"]: row for row in covered.rows(report)}
    assert list(rows) == ["cli", "keyfilters", "all"]
    assert rows["cli"]["run, %"] == 97.5 and rows["cli"]["taken, %"] == 25
    assert rows["all"]["both, %"] == pytest.approx(100 * 106 / 110, abs=0.05)

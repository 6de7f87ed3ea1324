"""The parts of benchmarks/results/hardening.json, each written by the script that measured it."""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS

PATH = RESULTS / "hardening.json"


def add_rows(name: str, about: dict[str, Any], key: str, rows: list[dict[str, Any]]) -> None:
    """Put rows of one part into the file, in place of those of an earlier run by the same key."""
    held = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    new = {row[key] for row in rows}
    kept = [row for row in held.get(name, []) if row[key] not in new]
    held[name] = [*kept, *({**row, "about": about} for row in rows)]
    PATH.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""The parts of benchmarks/results/hardening.json, each written by the script that measured it."""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS

PATH = RESULTS / "hardening.json"


def add_part(name: str, part: dict[str, Any]) -> None:
    """Put one part into the file, in place of that of an earlier run."""
    held = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    held[name] = part
    PATH.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

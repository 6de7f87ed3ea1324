"""Write results/hardening.md from the parts in results/hardening, as far as they exist.

    python benchmarks/hardening.py

A part is ``results/hardening/NAME.json``: part (its title), command, date, machine, versions, rows
(a table), faults and remarks (sentences), as `save_part` writes it. Parts may be absent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

if __package__:
    from .common import RESULTS, environment, markdown
else:
    from common import RESULTS, environment, markdown  # type: ignore[import-not-found,no-redef]

FOLDER = RESULTS / "hardening"
ABSENT = {"fuzz": "make fuzz", "killed": "make test-killed"}  # how to make a part


def save_part(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    faults: list[str],
    remarks: list[str],
    command: str,
    folder: Path = FOLDER,
) -> None:
    """Write one part; the file of an earlier run is replaced.

    Args:
        name: of the file, without suffix.
        title: of the section.
        rows: a table; the first row names the columns.
        faults: one sentence for each fault found, with what became of it.
        remarks: bounds, and what was not tried.
        command: what was typed.
        folder: where the parts lie.
    """
    said = environment() | {"command": command}
    about = {key: said[key] for key in ("command", "date", "machine", "python", "versions")}
    held = {"part": title, **about, "rows": rows, "faults": faults, "remarks": remarks}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(held, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def told_before(name: str, key: str, folder: Path = FOLDER) -> list[str]:
    """Return the faults or remarks of an earlier run of a part; sentences are written by hand."""
    path = folder / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8")).get(key, [])) if path.exists() else []


def section(part: dict[str, Any]) -> str:
    """Return one part as Markdown: what was typed and where, the table, the sentences."""
    versions = ", ".join(f"{name} {found}" for name, found in (part.get("versions") or {}).items())
    python = f"Python {part['python']}" if part.get("python") else ""
    about = [part.get("date"), part.get("machine"), python, versions]
    lines = [f"## {part['part']}\n", f"`{part['command']}`; {'; '.join(filter(None, about))}.\n"]
    if part.get("rows"):
        table = pd.DataFrame(part["rows"]).astype(object)
        lines.append(markdown(table.where(table.notna(), None)) + "\n")
    for title, key in (("Faults found", "faults"), ("Remarks", "remarks")):
        if sentences := part.get(key):
            lines.append(f"{title}:\n\n" + "\n".join(f"- {x}" for x in sentences) + "\n")
    return "\n".join(lines)


def write_page(folder: Path = FOLDER) -> str:
    """Write the page beside the folder of the parts, and return it."""
    paths = sorted(folder.glob("*.json"))
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    lacking = [f"`{ABSENT[x]}`" for x in ABSENT if not (folder / f"{x}.json").exists()]
    lines = ["# Hardening: what was done to break it\n", *map(section, parts)]
    if lacking:
        lines.append(f"Not recorded here: {', '.join(lacking)}.\n")
    text = "\n".join(lines)
    (folder.parent / f"{folder.name}.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.stdout.write(write_page())

"""The parts of benchmarks/results/hardening, one file each, and the page of all of them.

python benchmarks/hardening.py    # write hardening.md again
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

if __package__:
    from .common import RESULTS, environment, markdown
else:
    from common import RESULTS, environment, markdown  # type: ignore[import-not-found,no-redef]

FOLDER = RESULTS / "hardening"


def record(
    name: str,
    part: str,
    rows: Sequence[Mapping[str, Any]],
    faults: Sequence[str] = (),
    remarks: Sequence[str] = (),
    command: str | None = None,
) -> None:
    """Write one part, in place of an earlier run, and the page.

    Args:
        name: of its file.
        part: its title.
        rows: of its table.
        faults: what was found wrong, a sentence each.
        remarks: what the table does not say.
        command: what was typed, if not the script that runs with its arguments.
    """
    about = environment() | ({"command": command} if command else {})
    found = {"rows": list(rows), "faults": list(faults), "remarks": list(remarks)}
    text = json.dumps({"part": part} | about | found, indent=1, ensure_ascii=False)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """Write hardening.md from all parts."""
    lines = ["# Hardening"]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        lines += [
            f"## {found['part']}",
            f"`{found['command']}`, {found['date']}; {found['machine']}; {versions}.",
            markdown(pd.DataFrame(found["rows"]).astype(object)),
        ]
        for title in ("faults", "remarks"):
            lines += [f"- {title[:-1]}: {x}" for x in found[title]]
    FOLDER.with_suffix(".md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_page()

"""Texts that libFuzzer makes, led by the coverage of keyfilters (``pip install atheris``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .inputs import ended
from .texts import TEXTS, reader

__all__ = ["run_guided"]


def guided(kind: str, seconds: int) -> None:
    """Give texts to one reader; this process ends with it."""
    import atheris

    with atheris.instrument_imports(include=["keyfilters"]):
        read = reader(kind)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(folder)
    (folder / "corpus").mkdir()
    for i, text in enumerate(TEXTS[kind]):
        (folder / "corpus" / str(i)).write_text(text)

    def one(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if told := ended(lambda: read(text), text):
            raise RuntimeError(told)

    options = ["-timeout=10", "-rss_limit_mb=4096", f"-max_total_time={seconds}", "-max_len=400"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", "corpus"], one)
    atheris.Fuzz()


def run_guided(kind: str, seconds: int) -> dict[str, Any]:
    """Run `guided` in a process of its own and return its counts."""
    code = f"from benchmarks.fuzz.guided import guided; guided({kind!r}, {seconds})"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root,
                          errors="replace", check=False)  # fmt: skip
    count = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    faults = [x for x in done.stderr.splitlines() if "RuntimeError" in x or "ERROR: lib" in x]
    if count is None:
        faults.append(done.stderr[-300:])
    row = {"target": f"guided text: {kind}", "inputs": int(count[1]) if count else 0,
           "faults": len(faults), "seconds": seconds}  # fmt: skip
    print(row, *faults[:3], sep="\n  ", flush=True)
    return {**row, "first": faults[:5]}

"""Whole processes, as a user starts them: seconds, processor seconds and peak memory of each."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A process inherits the peak memory of what starts it, so that a small one stands between.
LAUNCH = """
import json, os, sys, time
started = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    json.dump([time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


@dataclass(frozen=True)
class Usage:
    """What a process used.

    Attributes:
        seconds: from its start to its end.
        processor: processor seconds.
        memory: most that was resident, in GB.
        output: what it wrote to standard output.
    """

    seconds: float
    processor: float
    memory: float
    output: str


def python(*arguments: str) -> Usage:
    """Run this Python with arguments in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    command = [sys.executable, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "used.json"
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCH, str(figures), *command],
            capture_output=True, text=True, errors="replace", cwd=Path(__file__).parents[2],
        )  # fmt: skip
        if done.returncode:
            said = done.stderr[-2000:]
            raise RuntimeError(f"{' '.join(command[1:])} failed: {said}")
        seconds, processor, peak = json.loads(figures.read_text())
    # Kilobytes on Linux, bytes on macOS.
    memory = peak / (1e9 if sys.platform == "darwin" else 1e6)
    return Usage(seconds, processor, memory, done.stdout)


def keyfilters(verb: Sequence[str]) -> Usage:
    """Run the command line."""
    return python("-m", "keyfilters", *verb)

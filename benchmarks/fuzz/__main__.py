"""Give damaged files and texts to everything that reads them, and watch what happens.

    python -m benchmarks.fuzz [--files 4000] [--texts 6000] [--commands 1500] [--seed 0] [--record]
    python -m benchmarks.fuzz --guided 30 [--record]

Files: small ones in each of the formats, cut and overwritten at random places. Texts: sources,
treatments, key sets, recipes, changes of recipes, data sets, sizes, options, and whole command
lines, made from right ones by mutation and by hypothesis. ``--guided SECONDS`` gives texts and
files that libFuzzer makes, led by the coverage of keyfilters (needs ``pip install atheris``).

Each input may give a result or a KeyFiltersError of one line. A fault is any other exception, a
process that ends, more than 10 s of processor time or 2 GB of memory, a file that is opened or
written outside the folder given and not named by the input (Python's own modules apart), a program
or a connection that is started, code that is run from a file, or a traceback of the command line.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the tests write the small models

from ..hardening import record  # noqa: E402
from .guided import guided_jobs, run_guided  # noqa: E402
from .model_files import TARGETS  # noqa: E402
from .runner import MEMORY, SECONDS, fuzz  # noqa: E402
from .texts import TEXTS  # noqa: E402

REMARKS = [
    f"Bounds of one input: {SECONDS} s of processor time, {MEMORY >> 30} GB of address space "
    "beside what the process had, no file outside the folder given and not named by the input, no "
    "program, no connection, no class of a pickle but those of tensors, no code of a file.",
    "An input that is refused by a KeyFiltersError of one line, or read, is no fault.",
    "Found by earlier runs and mended: tracebacks for names that no file can have (too long, half "
    "a character, the home of an unknown user) as sources, keys, data sets and addresses; for "
    "arrays and archives of keys with damaged headers, encryption or unknown compression; for "
    "damaged saved banks, atlases, patterns and autoencoders, progress files of a search, records "
    "of runs and experiments, kinds of columns, images and labels of different numbers.",
    "Also: numbers of thousands of digits in recipes, addresses with stray brackets, folders that "
    "may not be looked into; messages of several lines, where that of a library was quoted; a "
    "treatment whose key file has a comma in its name did not read back; a signal that arrived "
    "inside a library in C ended in the error of that library.",
    "And: numbers of thousands of digits as a number of keys; neighbours of a file that were "
    "opened as their names only began alike. One fault that was told was none: a file with an = in "
    "its name.",
]


def jobs(files: int, texts: int, commands: int) -> list[tuple[str, str, int]]:
    """Return kind, name and number of inputs of every target."""
    found = [("file", name, files) for name in TARGETS]
    found += [(kind, name, texts) for name in TEXTS for kind in ("text", "drawn text")]
    return [*found, ("command", "", commands)]


def main() -> None:
    """Fuzz every reader; with ``--record`` the part of the page on hardening is written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--files", type=int, default=4000, help="damaged files of each target")
    parser.add_argument("--texts", type=int, default=6000, help="texts of each kind, twice")
    parser.add_argument("--commands", type=int, default=1500, help="command lines")
    parser.add_argument(
        "--guided", type=int, default=0, help="seconds of libFuzzer for each target"
    )
    parser.add_argument("--only", default="", help="names of targets, with semicolons between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/hardening")
    asked = parser.parse_args()
    import keyfilters.cli
    import keyfilters.treatment  # noqa: F401

    given = [x for x in jobs(asked.files, asked.texts, asked.commands)
             if not asked.only or {x[0], x[1]} & set(asked.only.split(";"))]  # fmt: skip
    with ThreadPoolExecutor(asked.workers) as pool:
        if asked.guided:
            rows = list(pool.map(lambda x: run_guided(*x, asked.guided), guided_jobs()))
        else:
            rows = list(pool.map(lambda x: fuzz(x[0], x[1], asked.seed, x[2]), given))
    count = {key: sum(row[key] for row in rows) for key in ("inputs", "faults")}
    print(f"{count['inputs']:,} inputs, {count['faults']} faults")
    if asked.record:
        _record(rows, count, asked.guided > 0)
    sys.exit(bool(count["faults"]))


def _record(rows: list[dict[str, Any]], count: dict[str, int], guided: bool) -> None:
    name, title = ("fuzz-guided", "Fuzzing led by coverage") if guided else ("fuzz", "Fuzzing")
    still = [x for row in rows for x in row["first"]]
    table = [{key: row[key] for key in row if key != "first"} for row in rows]
    table.append({"target": "all", **count, "seconds": round(sum(r["seconds"] for r in rows), 1)})
    command = shlex.join(["python", "-m", "benchmarks.fuzz", *sys.argv[1:]])
    record(name, title, table, [x[:300] for x in still[:20]], REMARKS, command)


if __name__ == "__main__":
    main()

"""The suite with the oldest versions that pyproject.toml allows, and how they are chosen.

    python benchmarks/oldest.py --lock    # write oldest.txt again, after a floor has changed
    python benchmarks/oldest.py           # run the suite in this environment and record it

``make test-oldest`` installs oldest.txt into an environment of its own (Python 3.11) and runs the
second command there. ``--name`` records a run of another environment beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hardening import FOLDER, record
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
LOCK, EXTRAS = HERE / "oldest.txt", ("dev", "formats", "hf")
SHOWN = ("torch", "timm", "numpy", "scipy", "pandas", "scikit-learn", "pydantic", "matplotlib")


def floors(project: dict[str, Any], extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """Return the oldest version allowed of every dependency, also of the extras.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    optional = project["optional-dependencies"]
    found, waiting = {}, [*project["dependencies"], *(x for e in extras for x in optional[e])]
    while waiting:
        wanted = Requirement(waiting.pop())
        if wanted.name == project["name"]:
            waiting += [x for extra in wanted.extras for x in optional[extra]]
            continue
        lowest = [x.version for x in wanted.specifier if x.operator in (">=", "==")]
        if len(lowest) != 1:
            raise ValueError(f"{wanted} has no lower bound; write one into pyproject.toml")
        found[canonicalize_name(wanted.name)] = lowest[0]
    return found


def pins(text: str) -> dict[str, str]:
    """Return the versions that a file of constraints states."""
    lines = [line.partition("#")[0].partition("==") for line in text.splitlines()]
    return {canonicalize_name(x.strip()): number.strip() for x, equal, number in lines if equal}


def lock() -> None:
    """Write oldest.txt with uv: the floors, and of all that these need the newest that fits."""
    LOCK.unlink(missing_ok=True)  # uv would keep what stands there
    command = ["uv", "pip", "compile", "pyproject.toml", "--resolution", "lowest-direct"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--python-version", "3.11", "--no-annotate", "--no-header", "--quiet"]
    command += ["--constraints", str(HERE / "oldest.in"), "--output-file", str(LOCK)]
    subprocess.run(command, cwd=HERE.parent, check=True)


def run(arguments: list[str]) -> dict[str, Any]:
    """Run the suite in this environment, warnings as errors, and return its counts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-ra", "-W", "error", "-m", "not long"]
        command += [f"--junit-xml={path}", "-p", "no:cacheprovider", *arguments]
        limits = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        subprocess.run(command, cwd=HERE.parent, env=os.environ | limits, check=False)
        suite = ElementTree.parse(path).getroot()[0]
    count = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{x.attrib['classname']}::{x.attrib['name']}"
        for x in suite.iter("testcase")
        if x.find("failure") is not None or x.find("error") is not None
    ]
    return {**count, "minutes": round(float(suite.attrib["time"]) / 60, 1), "failed": failed}


def main() -> int:
    """Lock, or run and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", action="store_true", help="write oldest.txt again")
    parser.add_argument("--name", default="oldest", help="which environment this is")
    options, arguments = parser.parse_known_args()
    if options.lock:
        lock()
        return 0
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    if options.name == "oldest":
        stated = pins(LOCK.read_text(encoding="utf-8"))
        other = [x for x in floors(project["project"]) if version(x) != stated[x]]
        if other:
            sys.exit(f"not the versions of oldest.txt: {', '.join(other)}; use make test-oldest")
    found = run(arguments)
    failed = found.pop("failed")
    row = {"environment": options.name, "python": platform.python_version(), **found}
    chosen = [x for x in arguments if x.startswith("tests")]
    row |= {"tests run": " ".join(chosen) or "all but the long ones"}
    row |= {name: version(name) for name in SHOWN}
    record_row(row, failed)
    return 1 if failed else 0


def record_row(row: dict[str, Any], failed: list[str]) -> None:
    """Put the row into oldest.json, in place of one of the same environment and Python."""
    path = FOLDER / "oldest.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = (row["environment"], row["python"])
    rows = [x for x in held.get("rows", []) if (x["environment"], x["python"]) != same]
    title = f"{row['environment']}, Python {row['python']}: "
    faults = [x for x in held.get("faults", []) if not x.startswith(title)]
    faults += [f"{title}{x} fails." for x in failed]
    part = "Oldest and newest versions"
    record("oldest", part, [*rows, row], faults, REMARKS)


REMARKS = [
    "Oldest: the floors of pyproject.toml, locked in benchmarks/oldest.txt. Warnings are errors.",
    "Floors raised because these runs failed: onnxruntime 1.17 to 1.19 (NumPy 2), tensorboard 2.16 "
    "to 2.19 (NumPy 2), scipy 1.14 to 1.15 (argument rng), tflite 2.10 to 2.18 (data behind the "
    "flatbuffer, StableHLO), pyfive 1.0 to 1.2.1 (user blocks), pebble 5.0 to 5.0.2 and "
    "tensorstore 0.1.70 to 0.1.71 (never published, or withdrawn).",
    "Mended: parametrised filters compile in one piece with torch 2.6 too.",
    "The two tests that failed on Python 3.13 were mended after that run, and pass alone: one "
    "changed a class in a way that 3.13 does not allow, one met a warning of torch about 3.13.0.",
    "Python 3.14 was not tried: no interpreter could be had where this ran.",
]


if __name__ == "__main__":
    sys.exit(main())

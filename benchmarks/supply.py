"""What is published and what it depends on: archives, licences, known weaknesses, parts.

    python benchmarks/supply.py [--tools .venv-supply/bin] [--out out/supply]

Run by ``make supply``. Into the folder go the wheel, the source archive, ``sbom.json`` (CycloneDX),
``licences.json`` and ``audit.json`` of all packages that the plain install and the extras for users
bring; the wheel is built twice and must be the same, byte for byte. Runs where keyfilters and those
extras are installed; the tools (build, cyclonedx-bom, pip-audit, pip-licenses) may lie elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from hardening import record
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("formats", "train", "ray")  # hf only adds datasets
EPOCH = "1767225600"  # 2026-01-01
WANTED = {"src", "keyfilters", "tests", "recipes", "docs"}  # folders that the archives may hold
COPYLEFT = ("GPL", "AGPL", "SSPL", "EUPL")  # LGPL, too, is named: a person must look


def dependencies(extras: tuple[str, ...] = EXTRAS) -> tuple[dict[str, str], list[str]]:
    """Return the installed packages that keyfilters needs, with versions, and the missing ones."""
    found: dict[str, str] = {}
    missing: list[str] = []
    seen: set[tuple[str, str]] = set()
    waiting = [("keyfilters", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            held = distribution(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        found[name] = held.version
        for wanted in map(Requirement, held.requires or []):
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                known = canonicalize_name(wanted.name)
                waiting += [(known, x) for x in ("", *wanted.extras)]
    return found, sorted(set(missing))


def build(out: Path, *kinds: str) -> list[Path]:
    """Build archives whose files are dated by `EPOCH`; return their paths."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), *kinds, str(ROOT)]
    dated = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    subprocess.run(command, env=dated, check=True, stdout=subprocess.DEVNULL)
    return sorted(out.glob("keyfilters-*"), key=lambda x: x.suffix)


def archive_row(path: Path, again: Path) -> dict[str, Any]:
    """Return size, number of files, digest, and whether a second build gave the same bytes."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as held:
            names = held.namelist()
        top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    else:
        with tarfile.open(path) as held:
            names = [x.name.partition("/")[2] for x in held if x.isfile()]
        top = {name.split("/")[0] for name in names if "/" in name}
    return {
        "what": path.name,
        "kB": round(path.stat().st_size / 1000),
        "count": len(names),
        "state": "twice the same bytes"
        if path.read_bytes() == again.read_bytes()
        else "not the same bytes when built again",
        "note": f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…",
        "other folders": sorted(top - WANTED),
    }


def tool(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools."""
    return subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=False)


def licences(
    tools: Path, out: Path, found: dict[str, str]
) -> tuple[dict[str, Any], list[str], Counter[str]]:
    """Write licences.json; return a row, what a person must look at, and all licences counted."""
    arguments = ["--python", sys.executable, "--format", "json", "--with-urls", "--with-system"]
    held = json.loads(tool("pip-licenses", tools, *arguments, "--packages", *found).stdout)
    (out / "licences.json").write_text(json.dumps(held, indent=1), encoding="utf-8")
    kinds = {x["Name"]: x["License"] for x in held}
    doubtful = [
        f"{name} ({kind})"
        for name, kind in sorted(kinds.items())
        if any(word in kind for word in COPYLEFT) or kind == "UNKNOWN"
    ]
    unlisted = len(found) - len(kinds)
    state = f"{len(doubtful)} to look at, {unlisted} not listed"
    row = {"what": "licences", "count": len(kinds), "state": state, "note": "licences.json"}
    return row, doubtful, Counter(kinds.values())


def audit(tools: Path, out: Path, found: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Write audit.json; return a row and the known weaknesses."""
    stated = out / "audited.txt"
    lines = [f"{x}=={number}" for x, number in sorted(found.items()) if x != "keyfilters"]
    stated.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = tool("pip-audit", tools, "-r", str(stated), *options)
    held = json.loads(done.stdout)["dependencies"] if done.stdout else []
    (out / "audit.json").write_text(json.dumps(held, indent=1), encoding="utf-8")
    looked = [x for x in held if "vulns" in x]
    weak = [
        f"{x['name']} {x['version']} has the known weakness {v['id']}, mended in "
        f"{', '.join(v['fix_versions']) or 'no version'}."
        for x in looked
        for v in x["vulns"]
    ]
    state = f"{len(looked)} looked up, {len(lines) - len(looked)} not, {len(weak)} weaknesses"
    return {"what": "pip-audit", "count": len(lines), "state": state, "note": "audit.json"}, weak


def parts(tools: Path, out: Path) -> dict[str, Any]:
    """Write sbom.json of this environment, and return a row."""
    path = out / "sbom.json"
    arguments = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
    arguments += ["--mc-type", "library", "--of", "JSON", "-o", str(path), sys.executable]
    done = tool("cyclonedx-py", tools, "environment", *arguments)
    if done.returncode:
        raise RuntimeError(done.stderr)
    held = json.loads(path.read_text(encoding="utf-8"))
    state = f"CycloneDX {held['specVersion']}, of the whole environment"
    return {"what": "SBOM", "count": len(held["components"]), "state": state, "note": "sbom.json"}


def main() -> int:
    """Build, list, look up, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "supply")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "1", Path(folder) / "2"
        pairs = zip(build(first), build(second), strict=True)
        rows = [archive_row(*pair) for pair in pairs]
        for path in first.iterdir():
            (out / path.name).write_bytes(path.read_bytes())
    faults = [f"{x['what']}: {x['state']}." for x in rows if "not" in x["state"]]
    faults += [f"{x['what']} holds {x['other folders']}." for x in rows if x["other folders"]]
    rows = [{k: v for k, v in x.items() if k != "other folders"} for x in rows]
    found, missing = dependencies()
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; type: pip install '.[{','.join(EXTRAS)}]'")
    licence_row, doubtful, kinds = licences(options.tools, out, found)
    audit_row, weak = audit(options.tools, out, found)
    faults += weak
    rows += [licence_row, audit_row, parts(options.tools, out)]
    remarks = ["Licences that a person must look at: " + ("; ".join(doubtful) or "none") + "."]
    remarks += ["All: " + "; ".join(f"{kind} {n}" for kind, n in kinds.most_common()) + "."]
    looked = int(audit_row["state"].split()[0])
    if looked < audit_row["count"]:
        remarks.append("pip-audit could not ask its index for every package: that is no pass.")
    record("supply", "Supply: archives, licences, weaknesses, parts", rows, faults, remarks)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

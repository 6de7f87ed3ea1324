"""Build the archives, install them without extras by pip alone, and use every verb.

    python benchmarks/bare_install.py [--python python3.13] [--work FOLDER]

Needs the packages build and safetensors here, and about 6 GB of disk. In the bare environment:

- every verb answers ``--help``, and the verbs that need no extra do their work on a small file;
- what needs an extra ends with exit code 2 and names that extra;
- a wheel made from the source archive is the wheel that is published, byte for byte, and the source
  archive installs over it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from hardening import FOLDER, record
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
VERBS = "atlas compare check read fit replace init discover train experiment reproduce sources"
BARE = {  # verb -> what it is asked with the libraries of the plain install
    "read": "read a.safetensors --out o/read",
    "check": "check a.safetensors --out o/check",
    "compare": "compare a.safetensors b.safetensors --out o/compare",
    "fit": "fit keys.txt --method B --out o/fit",
    "replace": "replace a.safetensors --out o/replace",
    "init": "init test_efficientnet --out o/init",
    "atlas": "atlas a.safetensors --like zoo-5x5 --out o/atlas",
    "discover": "discover a.safetensors --rounds 1 --kinds lines --candidates 30 --out o/d",
    "sources": "sources",
    "reproduce": "reproduce --list",
}
NEEDED = {  # what is asked -> the extra that its message must name
    "read x.onnx": "onnx",
    "read x.tflite": "tflite",
    "read x.h5": "keras",
    "read x.msgpack": "flax",
    "read tree": "orbax",
    "train recipe.toml --out o/train": "train",
    "experiment transfer --out o/transfer": "train",
    "atlas a.safetensors --executor ray --out o/ray": "ray",
}


def write_inputs(folder: Path) -> None:
    """Write small models, and the first bytes of files whose readers are extras."""
    draw = np.random.default_rng(0).normal
    for name in "ab":
        weight = draw(size=(40, 1, 5, 5)).astype(np.float32)
        save_file({"conv.weight": weight}, folder / f"{name}.safetensors")
    rows = draw(size=(8, 7, 7))
    text = "\n\n".join("\n".join(" ".join(f"{v:.5f}" for v in r) for r in x) for x in rows)
    (folder / "keys.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "recipe.toml").write_text('[model]\nname = "test_convnext"\n', encoding="utf-8")
    (folder / "x.onnx").write_bytes(b"\x08\x08\x3a\x02\x12\x00\x42\x02\x10\x0d")
    (folder / "x.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    (folder / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "x.msgpack").write_bytes(b"\x81\xa6params\x80")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "_METADATA").write_text('{"tree_metadata": {}}', encoding="utf-8")
    (tree / "manifest.ocdbt").write_bytes(bytes(16))


def build(folder: Path, source: Path, *kinds: str) -> list[Path]:
    """Build archives of a source tree or of a source archive, dated 2026-01-01."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), *kinds, str(source)]
    dated = os.environ | {"SOURCE_DATE_EPOCH": "1767225600"}
    subprocess.run(command, env=dated, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob("keyfilters-*"))


def tried(binary: Path, folder: Path, arguments: str) -> tuple[int, str, float]:
    """Return exit code, standard error and seconds of one command."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    start = time.perf_counter()
    found = subprocess.run(
        [binary, *arguments.split()],
        cwd=folder, env=clean, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return found.returncode, found.stderr, time.perf_counter() - start


def use(binary: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Use every verb; return counts and faults."""
    faults, slowest = [], 0.0
    for verb in VERBS.split():
        code, error, seconds = tried(binary, folder, f"{verb} --help")
        slowest = max(slowest, seconds)
        if code:
            faults.append(f"`{verb} --help` ends with {code}: {error[-200:]}")
    for arguments in BARE.values():
        code, error, _ = tried(binary, folder, arguments)
        if code:
            faults.append(f"`{arguments}` ends with {code} without extras: {error[-300:]}")
    for arguments, extra in NEEDED.items():
        code, error, _ = tried(binary, folder, arguments)
        if code != 2 or f"keyfilters[{extra}]" not in error or "Traceback" in error:
            faults.append(f"`{arguments}` does not name the extra {extra} ({code}): {error[-300:]}")
    shutil.rmtree(folder / "o", ignore_errors=True)
    counts = {"verbs with help": len(VERBS.split()), "verbs that work": len(BARE)}
    counts |= {"commands that need an extra": len(NEEDED)}
    return {**counts, "slowest help, s": round(slowest, 1)}, faults


def installed(python: str, wheel: Path, sdist: Path, work: Path) -> list[tuple[dict, list[str]]]:
    """Install the wheel, then the source archive over it, and use both."""
    place = work / "bare"
    subprocess.run([python, "-m", "venv", "--clear", str(place)], check=True)
    pip = [place / "bin" / "python", "-m", "pip", "--quiet", "install"]
    say = "import platform; print(platform.python_version())"
    number = subprocess.check_output([place / "bin" / "python", "-c", say], text=True).strip()
    inputs, found = work / "inputs", []
    inputs.mkdir()
    write_inputs(inputs)
    for archive, options in ((wheel, []), (sdist, ["--force-reinstall", "--no-deps"])):
        subprocess.run([*pip, *options, archive], check=True)
        row, faults = use(place / "bin" / "keyfilters", inputs)
        row = {"archive": archive.name.removeprefix("keyfilters-"), "python": number, **row}
        found.append(({**row, "faults": len(faults)}, faults))
    return found


def main() -> int:
    """Build, install, use and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="what makes the environment")
    parser.add_argument("--work", type=Path, help="where to work; default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        sdist, wheel = sorted(build(work / "dist", ROOT), key=lambda x: x.suffix == ".whl")
        [again] = build(work / "again", sdist_tree(sdist, work), "--wheel")
        same = again.read_bytes() == wheel.read_bytes()
        found = installed(options.python, wheel, sdist, work)
    faults = [f"Python {row['python']}: {x}" for row, faults in found for x in faults]
    rows = [row | {"sdist gives the same wheel": same} for row, _ in found]
    path = FOLDER / "bare-install.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = {(x["archive"], x["python"]) for x in rows}
    kept = [x for x in held.get("rows", []) if (x["archive"], x["python"]) not in new]
    mine = f"Python {rows[0]['python']}: "
    others = [x for x in held.get("faults", []) if not x.startswith(mine)]
    remark = "pip only, no extras; `read x.onnx` and the like must end with 2 and name their extra."
    record("bare-install", "A bare install", [*kept, *rows], [*others, *faults], [remark])
    return 1 if faults or not same else 0


def sdist_tree(archive: Path, work: Path) -> Path:
    """Unpack a source archive and return its folder."""
    shutil.unpack_archive(archive, work / "tree", filter="data")
    [folder] = (work / "tree").iterdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())

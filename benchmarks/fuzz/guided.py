"""Inputs that libFuzzer makes, led by the coverage of keyfilters (``pip install atheris``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .inputs import ended
from .model_files import TARGETS
from .texts import TEXTS, reader

__all__ = ["guided_jobs", "run_guided"]

SEVERAL = {"core_ml_package", "openvino", "ncnn", "ncnn_binary", "paddle", "darknet",
           "tf_checkpoint",
           "saved_model", "tfjs_weights", "tfjs_layers", "tfjs_graph", "saved atlas", "IDX images",
           "folder of images", "parquet images", "openvino to write back"}  # fmt: skip
SLOW = {"record of an experiment"}  # each draws figures


def guided_jobs() -> list[tuple[str, str]]:
    """Return kind and name of every target that is one text or one file."""
    texts = [("text", name) for name in TEXTS]
    return [*texts, *(("file", name) for name in TARGETS if name not in SEVERAL | SLOW)]


def guided(kind: str, name: str, seconds: int) -> None:
    """Give inputs to one reader; this process ends with it."""
    import atheris

    with atheris.instrument_imports(include=["keyfilters"]):
        import keyfilters.cli
        import keyfilters.sources  # noqa: F401
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(folder)
    corpus, seeds, read = Path("corpus"), [], _read_text(name) if kind == "text" else None
    if read is None:
        seeds, read = _file(name, folder)
    corpus.mkdir()
    for i, content in enumerate(seeds or [x.encode() for x in TEXTS[name]]):
        (corpus / str(i)).write_bytes(content)
    given = read

    def one(data: bytes) -> None:
        if told := ended(lambda: given(data), data.hex()[:2000]):
            raise RuntimeError(told)

    options = ["-timeout=10", "-rss_limit_mb=4096", f"-max_total_time={seconds}"]
    longest = 400 if kind == "text" else 2 * max(map(len, seeds))
    options += [f"-max_len={longest}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, "corpus"], one)
    atheris.Fuzz()


def _read_text(name: str) -> Callable[[bytes], Any]:
    read = reader(name)
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def _file(name: str, folder: Path) -> tuple[list[bytes], Callable[[bytes], Any]]:
    (folder / "given").mkdir()
    path = TARGETS[name].make(folder / "given")
    victim = next(x for x in path.parent.rglob("*") if x.is_file())
    seeds = [victim.read_bytes()]

    def read(data: bytes) -> Any:
        victim.write_bytes(data)
        return TARGETS[name].read(path)

    return seeds, read


def run_guided(kind: str, name: str, seconds: int) -> dict[str, Any]:
    """Run `guided` in a process of its own and return its counts."""
    code = f"from benchmarks.fuzz.guided import guided; guided({kind!r}, {name!r}, {seconds})"
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root,
                          errors="replace", check=False,
                          env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    count = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    faults = [x for x in done.stderr.splitlines() if "RuntimeError" in x or "ERROR: lib" in x]
    if count is None or (done.returncode and not faults):
        faults.append(f"exit code {done.returncode}: {done.stderr[-300:]}")
    row = {"target": f"guided {kind}: {name}", "inputs": int(count[1]) if count else 0,
           "faults": len(faults), "seconds": seconds}  # fmt: skip
    print(row, *(x[:600] for x in faults[:3]), sep="\n  ", flush=True)
    return {**row, "first": faults[:5]}

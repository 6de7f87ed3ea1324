"""A few hundred of the inputs of ``make fuzz``, and that it notices every kind of fault.

The inputs are read in processes of their own: an audit hook stays to the end of its process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.common", reason="the benchmarks are in the repository only")
if sys.platform != "linux":
    pytest.skip("needs /proc and fork", allow_module_level=True)

from benchmarks import hardening

ROOT = Path(__file__).parents[2]
FILES = ["safetensors", "plain_pickle", "frozen_graph", "core_ml", "numpy_arrays", "keys .txt",
         "keys .npz", "pkl that runs code", "npz that runs code", "index of shards",
         "progress of a search", "result of a run", "zip of models", "saved bank"]  # fmt: skip
TEXTS = ["options", "treatment", "keys", "size", "change", "recipe", "filters of a text file"]
PLANTED = """
import json, os, subprocess, sys
from pathlib import Path
from benchmarks.fuzz import inputs, runner
from benchmarks.fuzz.model_files import Target
from keyfilters.errors import KeyFiltersError

def make(folder):
    (folder / "file").write_bytes(b"0123456789")
    return folder / "file"

def refuse(path):
    raise KeyFiltersError("refused")

def lines(path):
    raise type("Two", (KeyFiltersError,), {"__str__": lambda self: "one\\ntwo"})()

def hold(path):
    bytearray(3 << 30)

def spin(path):
    while True:
        pass

planted = {
    "reads": lambda path: path.read_bytes(),
    "refuses": refuse,
    "raises": lambda path: [][0],
    "says two lines": lines,
    "opens another file": lambda path: open("/etc/passwd").close(),
    "writes beside": lambda path: (path.parent / "new").write_text(""),
    "starts a program": lambda path: subprocess.run(["true"]),
    "runs code": lambda path: exec(compile("1", str(path), "exec")),
    "connects": lambda path: __import__("socket").getaddrinfo("localhost", 80),
    "takes memory": hold,
    "ends": lambda path: os._exit(3),
    "hangs": spin,
}
def after_the_first(read):
    calls = []  # of one process; the first call is made to import what is needed

    def call(path):
        calls.append(path)
        return read(path) if len(calls) > 1 else None

    return call

runner.SECONDS = 1
inputs.TARGETS.update({n: Target(make, after_the_first(x)) for n, x in planted.items()})
found = {name: runner.fuzz("file", name, 0, 2)["faults"] for name in planted}
Path(sys.argv[1]).write_text(json.dumps(found))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, text=True,
                          capture_output=True, check=False)  # fmt: skip


def test_a_small_part_of_the_inputs_makes_no_fault() -> None:
    only = ";".join([*FILES, *TEXTS])
    sizes = ["--files", "8", "--texts", "16", "--workers", "1"]
    done = run("-m", "benchmarks.fuzz", *sizes, "--seed", "3", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    count = 8 * len(FILES) + 2 * 16 * len(TEXTS)
    assert f"{count:,} inputs, 0 faults" in done.stdout


def test_every_kind_of_fault_is_noticed(tmp_path: Path) -> None:
    done = run("-c", PLANTED, str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("reads") == 0 and found.pop("refuses") == 0
    assert set(found.values()) == {2}, found


def test_a_part_that_is_run_again_is_replaced_and_the_page_holds_all_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardening, "FOLDER", tmp_path / "hardening")
    hardening.record("supply", "Supply", [{"what": "wheel"}], remarks=["A remark."])
    for faults in (["An old fault."], ["A fault."]):
        rows = [{"target": "a|b", "inputs": 3}, {"target": "c"}]
        hardening.record("fuzz", "Fuzzing", rows, faults, command="make fuzz")
    lines = (tmp_path / "hardening.md").read_text().splitlines()
    assert [x for x in lines if x.startswith("## ")] == ["## Fuzzing", "## Supply"]
    assert "| a\\|b | 3 |" in lines and "| c | – |" in lines and "- remark: A remark." in lines
    assert [x for x in lines if "fault" in x] == ["- fault: A fault."]
    assert any(x.startswith("`make fuzz`") for x in lines)

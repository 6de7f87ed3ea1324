from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import Run, run_grid
from tests.experiments import workers


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from keyfilters.experiments import Run, run_grid\n"
        "from tests.experiments.workers import hold\n"
        "if __name__ == '__main__':\n"
        f"    run_grid([Run('A', 1)], hold, {str(tmp_path / 'out')!r})\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "runs" / "A" / "seed-1" / "calls.txt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    assert not alive, "the run sleeps for a minute"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(KeyFiltersError, match=r"cannot write .*run.json: Not a directory"):
        run_grid([Run("A", 0)], workers.measure, tmp_path / "out")

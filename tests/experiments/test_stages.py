from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import Run
from keyfilters.experiments.stages import run_stages
from tests.experiments import workers
from tests.experiments.test_runner import at_once


def borrow(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Count what an earlier run has noted in its folder."""
    lent = folder.parents[2] / options["lender"] / "calls.txt"
    return {"top1": float(len(lent.read_text().splitlines()))}


def test_later_stages_build_on_earlier_ones(tmp_path: Path) -> None:
    lender = Run("lender", 1, {"gain": 1.0})
    borrowers = [Run("borrower", seed, {"lender": str(lender.folder)}) for seed in (0, 1)]
    stages = [([lender, lender], workers.measure), ([], workers.misbehave), (borrowers, borrow)]
    told: list[str] = []
    first, last = run_stages(stages, tmp_path, {"executor": at_once, "progress": told.append})
    assert first["condition"].tolist() == ["lender"] and last["top1"].tolist() == [1.0, 1.0]
    assert len(told) == 5
    run_stages(stages, tmp_path, {"executor": at_once})
    assert (tmp_path / lender.folder / "calls.txt").read_text() == "called\n", "finished runs stay"


def test_nothing_is_built_on_what_failed(tmp_path: Path) -> None:
    broken = Run("lender", 1, {"manner": "raise", "always": True})
    fine = Run("lender", 2)
    later = [Run("borrower", 0, {"lender": str(broken.folder)})]
    with pytest.raises(KeyFiltersError, match="that others depend on failed: lender, seed 1"):
        stages = [([broken, fine], workers.misbehave), (later, borrow)]
        run_stages(stages, tmp_path, {"executor": at_once})
    assert not (tmp_path / later[0].folder).exists()
    table = run_stages([([broken, fine], workers.misbehave)], tmp_path, {"executor": at_once})[0]
    assert table["status"].tolist() == ["failed", "done"], "the last stage may have failures"


def test_all_stages_are_checked_before_any_run(tmp_path: Path) -> None:
    run_stages([([Run("b", 0, {"x": 1})], workers.measure)], tmp_path, {"executor": at_once})
    stages = [([Run("a", 0)], workers.measure), ([Run("b", 0, {"x": 2})], workers.measure)]
    with pytest.raises(KeyFiltersError, match="holds another run"):
        run_stages(stages, tmp_path, {"executor": at_once})
    assert not (tmp_path / Run("a", 0).folder).exists()

"""The file of oldest versions follows pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def oldest(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("oldest")


def test_every_floor_is_locked(oldest: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors, locked = oldest.floors(project), oldest.pins(oldest.LOCK.read_text(encoding="utf-8"))
    assert {"torch", "numpy", "onnx", "datasets", "pytest"} <= set(floors)
    assert {x: Version(locked[x]) for x in floors} == {x: Version(floors[x]) for x in floors}


def test_a_dependency_without_a_floor_is_named(oldest: ModuleType) -> None:
    project = {"name": "made", "dependencies": ["numpy<3"], "optional-dependencies": {}}
    with pytest.raises(ValueError, match="numpy"):
        oldest.floors(project, ())


def test_extras_of_our_own_are_followed(oldest: ModuleType) -> None:
    optional = {"all": ["made[one,two]"], "one": ["a>=1.5"], "two": ["B_c[d]>=2", "a>=1.5"]}
    project = {"name": "made", "dependencies": [], "optional-dependencies": optional}
    assert oldest.floors(project, ("all",)) == {"a": "1.5", "b-c": "2"}
    assert oldest.pins("# x==1\nB_c==2  # why\n\na==1.5\n") == {"b-c": "2", "a": "1.5"}

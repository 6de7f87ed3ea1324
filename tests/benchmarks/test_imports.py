"""What the scripts of benchmarks/ import from keyfilters exists, also where no test runs them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))


def imported(script: Path) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of every import from keyfilters."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keyfilters"):
            yield from ((str(node.module), x.name) for x in node.names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda x: str(x.relative_to(BENCHMARKS)))
def test_what_a_script_imports_exists(script: Path) -> None:
    for module, name in imported(script):
        if not hasattr(import_module(module), name):
            import_module(f"{module}.{name}")


def test_there_are_scripts_that_import() -> None:
    assert len([script for script in SCRIPTS if list(imported(script))]) > 20

"""What the bare install is asked: every verb, and a file for every reader that is an extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer

import keyfilters as kf
from keyfilters.cli import app
from keyfilters.errors import MissingExtraError
from keyfilters.sources.formats import FORMATS, Format


@pytest.fixture
def bare(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("bare_install")


def test_every_verb_and_every_reader_is_asked(bare: ModuleType) -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(bare.VERBS.split()) == verbs
    asked = {x.split()[0] for x in (*bare.BARE.values(), *bare.NEEDED)}
    assert asked == verbs
    assert {x.extra for x in FORMATS if x.extra} <= set(bare.NEEDED.values())


def test_each_file_asks_for_its_extra(
    bare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare.write_inputs(tmp_path)
    monkeypatch.setattr(Format, "ready", property(lambda x: not x.package))
    files = {x.split()[1]: extra for x, extra in bare.NEEDED.items() if x.startswith("read ")}
    assert files
    for name, extra in files.items():
        with pytest.raises(MissingExtraError, match=rf"\[{extra}\]"):
            kf.read(tmp_path / name)
    assert len(kf.read(tmp_path / "a.safetensors").layers) == 1

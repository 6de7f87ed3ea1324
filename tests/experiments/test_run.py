from __future__ import annotations

import sys
from pathlib import Path

import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.run import Run, code_digest, versions

MEASURE = "tests.experiments.workers:measure"


def test_the_key_is_all_that_decides_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Run({"scheme": "A"}, 0, MEASURE, {"lr": 1})
    assert one.folder == Run({"scheme": "B"}, 0, MEASURE, {"lr": 1}).folder, "only a name differs"
    others = [
        Run({}, 1, MEASURE, {"lr": 1}),
        Run({}, 0, MEASURE, {"lr": 2}),
        Run({}, 0, "tests.experiments.workers:linger", {"lr": 1}),
        Run({}, 0, MEASURE, {"lr": 1}, contents={"data": "a"}),
        Run({}, 0, MEASURE, {"lr": 1}, contents={"data": "b"}),
        Run({}, 0, MEASURE, {"lr": 1}, {"lender": Run({}, 1, MEASURE)}),
        Run({}, 0, MEASURE, {"lr": 1}, {"lender": Run({}, 2, MEASURE)}),
    ]
    assert len({run.key for run in [one, *others]}) == len(others) + 1
    monkeypatch.setattr("keyfilters.experiments.run.versions", lambda: {"torch": "1.0"})
    assert Run({}, 0, MEASURE, {"lr": 1}).key != one.key


def test_changed_source_code_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for text in ("x = 1\n", "x = 2\n", "import keyfilters.errors\n"):
        (tmp_path / "own_module.py").write_text(text)
        code_digest.cache_clear()
        digests.append(code_digest("own_module"))
    assert len(set(digests)) == 3
    with pytest.raises(KeyFiltersError, match="no module no_such_module"):
        code_digest("no_such_module")


def test_code_is_followed_into_what_is_imported_and_no_further() -> None:
    """Pages decide no result, but surgery does, though it is imported two modules away."""
    code_digest.cache_clear()
    before = code_digest("keyfilters.experiments.single_run")
    package = Path(sys.modules["keyfilters"].__file__ or "").parent
    for name, counts in (
        ("report/drawing.py", False),
        ("surgery/freeze.py", True),
        ("sources/onnx_files.py", True),  # which the table of formats imports by its name
    ):
        seen = _read_bytes_with_change(package / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_bytes", seen)
            code_digest.cache_clear()
            assert (code_digest("keyfilters.experiments.single_run") != before) is counts
    code_digest.cache_clear()


def _read_bytes_with_change(changed: Path):  # type: ignore[no-untyped-def]
    original = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        return original(self) + (b"# changed\n" if self == changed else b"")

    return read_bytes


def test_refusals() -> None:
    with pytest.raises(KeyFiltersError, match="0 or more"):
        Run({}, -1, MEASURE)
    for bad in ({"x": float("nan")}, {"x": Path("y")}):
        with pytest.raises(KeyFiltersError, match="no JSON"):
            Run({}, 0, MEASURE, bad)
    assert versions()["torch"]

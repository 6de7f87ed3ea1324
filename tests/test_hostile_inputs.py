"""Kinds of inputs that ended in a traceback when ``make fuzz`` found them, one test a kind."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.discovery.progress_file import ProgressFile
from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.experiments.results import read_record
from keyfilters.files import typed_path
from keyfilters.training import Recipe
from keyfilters.treatment import Treatment
from tests.cli.test_cli import run
from tests.report.test_experiment_page import example

LONG = "x" * 5000


def test_a_message_is_one_line() -> None:
    error = SourceError("no header\nnor anything\u2028else")
    assert len(str(error).splitlines()) == 1 and str(error).split()[-1] == "else"


@pytest.mark.parametrize("name", [LONG, "x/" * 3000, "~no_such_user_here/x"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(KeyFiltersError) as caught:
        typed_path(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [f"{LONG}.npz", f"a:{LONG}.txt", LONG])
def test_keys_of_a_name_that_is_too_long(name: str) -> None:
    with pytest.raises(KeyFiltersError):
        kf.KeySet.named(name, 5)


@pytest.mark.parametrize("name", [LONG, f"{LONG}*", f"a#{LONG}", "~no_such_user_here/x",
                                  "https://\ud800a/b.pth"])  # fmt: skip
def test_sources_that_no_file_can_be(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KeyFiltersError):
        kf.read(name)


@pytest.mark.parametrize("url", ["https://[", "http://]/x.pth", "https://[x]/x.pth"])
def test_addresses_with_brackets_that_hold_no_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        kf.read(url)


def test_a_folder_that_may_not_be_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed, listed = tmp_path / "closed", Path.iterdir
    closed.mkdir()

    def refuse(folder: Path) -> Any:  # who runs the tests may be allowed everything
        if folder == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for source in (tmp_path, closed, closed / "net.pth"):
        with pytest.raises(SourceError, match="closed"):
            kf.read(source)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_recipes_of_numbers_and_lists_without_end(value: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[optimiser]\nlr = {value}\n")
    with pytest.raises(KeyFiltersError, match="TOML"):
        Recipe.load(path)
    path.write_text("")
    with pytest.raises(KeyFiltersError):
        Recipe.load(path, f"optimiser.lr={value}")


def test_an_index_that_names_no_possible_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": LONG}}))
    with pytest.raises(KeyFiltersError):
        kf.read(path)


@pytest.mark.parametrize("name", ["imagefolder", "fashion-mnist", "hf"])
def test_data_of_a_name_that_is_too_long(name: str) -> None:
    from keyfilters.training import load_data

    with pytest.raises(KeyFiltersError):
        load_data(f"{name}:{LONG}")


def npy(header: bytes) -> bytes:
    """An array of one filter, with a header of ours."""
    padded = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(72)


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f8', 'shape': (3, 3, ", b"((((", b"{'descr': '<f8',", b"\xff\xfe"]
)
def test_keys_in_an_array_whose_header_is_no_python(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "keys.npy").write_bytes(npy(header))
    with pytest.raises(KeyFiltersError, match=r"keys\.npy"):
        kf.KeySet.from_file(tmp_path / "keys.npy")


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99), (6, 250)])
def test_keys_in_an_archive_that_zipfile_does_not_support(
    tmp_path: Path, place: int, value: int
) -> None:
    """Set the mark of encryption, an unknown compression, a version of the far future."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}"))
    content = bytearray(file.getvalue())
    content[content.index(b"PK\x01\x02") + place] = value
    (tmp_path / "keys.npz").write_bytes(content)
    with pytest.raises(KeyFiltersError, match=r"keys\.npz"):
        kf.KeySet.from_file(tmp_path / "keys.npz")


def test_keys_beside_which_these_were_damaged_are_read(tmp_path: Path) -> None:
    content = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}")
    content = content[:-72] + np.eye(3).tobytes()
    (tmp_path / "keys.npy").write_bytes(content)
    assert kf.KeySet.from_file(tmp_path / "keys.npy").filters.shape == (1, 3, 3)


@pytest.mark.parametrize("line", [b"\xff\n", b"{\n", b"[1]\n", b'{"a": 1}\n[[\n'])
def test_a_damaged_progress_file_says_what_to_delete(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "0123456789abcdef.jsonl"
    path.write_bytes(line)
    with pytest.raises(KeyFiltersError, match="delete"):
        ProgressFile(tmp_path, path.stem)
    assert path.read_bytes() == line
    path.write_bytes(b'{"a": 1}\n{"cut')
    assert ProgressFile(tmp_path, path.stem).steps == [{"a": 1}]


@pytest.mark.parametrize("content", ["[]", "3", "{", "[" * 100_000])
def test_a_record_of_a_run_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(KeyFiltersError):
        read_record(tmp_path / "result.json")


@pytest.mark.parametrize("part", ["runs", "conditions", "comparisons", "charts", "matrices"])
def test_a_record_whose_parts_are_of_another_kind_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str
) -> None:
    record = tmp_path / "record.json"
    command = ("experiment", "page", str(record), "--out", str(tmp_path / "page.html"))
    for value in ([{"x": 1}], [3]):
        record.write_text(json.dumps(example() | {part: value}))
        code, _, error = run(capsys, *command)
        assert code == 2 and "record.json" in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
    record.write_text(json.dumps(example()))
    assert run(capsys, *command)[0] == 0


def test_kinds_of_columns_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from keyfilters.training.parquet import parquet_splits
    from tests.training.test_parquet import write

    for features in ([1], {"image": {"_type": "ClassLabel"}}, {"image": {"_type": ["x"]}}):
        write(tmp_path / "train-00000-of-00001.parquet", [0, 1], features)  # type: ignore[arg-type]
        with pytest.raises(KeyFiltersError):
            parquet_splits(tmp_path)


def test_a_treatment_with_a_comma_in_a_name_reads_back() -> None:
    found = Treatment.parse("keys?keys=a,b.npz&learn=bias")
    assert found.keys == "a,b.npz" and Treatment.parse(str(found)) == found

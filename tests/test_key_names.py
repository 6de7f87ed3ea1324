"""Names of keys, taken apart in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.key_names import KeyName, parse_key_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("keys.npz", KeyName("file")),
        ("consensus", KeyName("consensus")),
        ("random", KeyName("random", number=8)),
        ("random:3", KeyName("random", number=3)),
        ("lines:32", KeyName("lines", number=32)),
        ("lindeberg2026-B", KeyName("published", "lindeberg2026-B")),
        ("published:lindeberg2026-B", KeyName("published", "lindeberg2026-B")),
        ("published:B", KeyName("published", "B")),
    ],
)
def test_every_kind_of_name(name: str, expected: KeyName) -> None:
    assert parse_key_name(name) == expected


@pytest.mark.parametrize(
    ("name", "word"),
    [("kees", "kees"), ("lines", "lines"), ("lines:0", "number"), ("", "consensus")],
)
def test_names_that_stand_for_no_keys(name: str, word: str) -> None:
    with pytest.raises(KeyFiltersError, match=word):
        parse_key_name(name)


def test_a_file_is_a_file_even_with_a_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random:8.txt").write_text("")
    (tmp_path / "consensus").write_text("")
    assert parse_key_name("random:8.txt").kind == "file"
    assert parse_key_name("consensus").kind == "consensus"

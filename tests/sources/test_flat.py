"""Flatbuffers that are written by hand."""

from __future__ import annotations

import struct

import pytest

from keyfilters.sources.flat import Table, root


def texts(text: bytes, count: int) -> Table:
    """Return a table with a vector whose entries all lead to one text."""
    table = struct.pack("<I3H2xiI", 12, 6, 8, 4, 8, 4)
    places = [4 * (count - i) for i in range(count)]
    vector = struct.pack(f"<{1 + count}I", count, *places)
    return root(memoryview(table + vector + struct.pack("<I", len(text)) + text))


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_texts_may_be_shared(count: int) -> None:
    assert texts(b"conv", count).texts(0) == ["conv"] * count


def test_a_small_file_does_not_become_much_text() -> None:
    with pytest.raises(ValueError, match="texts"):
        texts(b"x" * 10_000, 1000).texts(0)

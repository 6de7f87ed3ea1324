"""Flatbuffers without their schemas: the fields of a table by position, every offset checked."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table", "root"]

MOST = 500_000  # entries of one vector of tables
LONGEST = 10_000  # bytes of one text in a vector


class Table:
    """One table of a flatbuffer.

    Args:
        data: the whole buffer.
        at: where the table lies.
    """

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - self._unpack("<i", at)
        self.size = self._unpack("<H", self.fields)

    def _unpack(self, kind: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(kind):
            raise ValueError("an offset leads out of the file")
        return int(struct.unpack_from(kind, self.data, at)[0])

    def _place(self, field: int) -> int:
        """Return where a field lies, 0 if it is missing."""
        entry = 4 + 2 * field
        offset = self._unpack("<H", self.fields + entry) if entry + 2 <= self.size else 0
        return self.at + offset if offset else 0

    def number(self, field: int, kind: str = "<i", default: int = 0) -> int:
        """Return a field of one integer of a `struct` type."""
        place = self._place(field)
        return self._unpack(kind, place) if place else default

    def float(self, field: int) -> float:
        """Return a field of one float."""
        bits = self.number(field, "<I")
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])

    def _vector(self, field: int, each: int) -> tuple[int, int]:
        """Return where the first entry of a vector lies, and their number."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + self._unpack("<I", place)
        count = self._unpack("<I", start)
        if count * each > len(self.data) - start - 4:
            raise ValueError(f"a vector of {count} entries leads out of the file")
        return start + 4, count

    def array(self, field: int, kind: str) -> NDArray[np.generic]:
        """Return a vector of numbers of a NumPy type."""
        start, count = self._vector(field, np.dtype(kind).itemsize)
        return np.frombuffer(self.data, kind, count, start if count else 0)

    def numbers(self, field: int, kind: str = "<i4") -> list[int]:
        """Return a vector of integers as a list."""
        return [int(x) for x in self.array(field, kind)]

    def text(self, field: int) -> str:
        """Return a text, empty if it is missing."""
        start, count = self._vector(field, 1)
        return bytes(self.data[start : start + count]).decode("utf-8", "replace")

    def table(self, field: int) -> Table | None:
        """Return the table of a field (also of a union), None if it is missing."""
        place = self._place(field)
        return Table(self.data, place + self._unpack("<I", place)) if place else None

    def tables(self, field: int) -> list[Table]:
        """Return the tables of a vector."""
        start, count = self._vector(field, 4)
        if count > MOST:
            raise ValueError(f"a vector of {count} tables")
        places = range(start, start + 4 * count, 4)
        return [Table(self.data, x + self._unpack("<I", x)) for x in places]

    def texts(self, field: int) -> list[str]:
        """Return the texts of a vector."""
        start, count = self._vector(field, 4)
        if count > MOST:
            raise ValueError(f"a vector of {count} texts")
        found, left = [], len(self.data) + LONGEST  # entries may all lead to one text
        for place in range(start, start + 4 * count, 4):
            at = place + self._unpack("<I", place)
            size = min(self._unpack("<I", at), LONGEST)
            left -= size
            if left < 0:
                raise ValueError("a vector of texts that are longer than the file")
            found.append(bytes(self.data[at + 4 : at + 4 + size]).decode("utf-8", "replace"))
        return found


def root(data: bytes | memoryview) -> Table:
    """Return the first table of a flatbuffer.

    Raises:
        ValueError: it lies outside the file.
    """
    view = memoryview(data)
    if len(view) < 8:
        raise ValueError("it is too short")
    return Table(view, int(struct.unpack_from("<I", view, 0)[0]))

"""Protocol buffers without their schemas: the fields of a message by number.

SavedModel, frozen graphs, Core ML, Caffe and Paddle are read with it; nothing is generated, and no
length is believed beyond the end of the file.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "varint"]

DEEPEST = 64  # messages inside each other


class Message:
    """One message, parsed when first asked.

    Args:
        data: its bytes.
        level: how many messages are around it.

    >>> Message(bytes([0x08, 0x96, 0x01, 0x12, 0x01, 0x61])).number(1)
    150
    """

    def __init__(self, data: bytes | memoryview, level: int = 0) -> None:
        self.data = memoryview(data)
        self.level = level
        if level > DEEPEST:
            raise ValueError(f"messages lie in each other more than {DEEPEST} deep")

    @cached_property
    def fields(self) -> dict[int, list[int | memoryview]]:
        """The values of every field, in order: numbers, or bytes where a length goes before."""
        found: dict[int, list[int | memoryview]] = {}
        data, at, end = self.data, 0, len(self.data)
        while at < end:
            key, at = varint(data, at)
            number, kind = key >> 3, key & 7
            value: int | memoryview
            if kind == 0:
                value, at = varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(kind, 0)
                if kind == 2:
                    size, at = varint(data, at)
                elif not size:
                    raise ValueError(f"a field of the wire type {kind}")
                if not number or size > end - at:
                    raise ValueError("a field ends behind its message")
                value, at = data[at : at + size], at + size
            found.setdefault(number, []).append(value)
        return found

    def number(self, field: int, default: int = 0) -> int:
        """Return the last value of a field of integers."""
        values = self.fields.get(field, [])
        return values[-1] if values and isinstance(values[-1], int) else default

    def signed(self, field: int, default: int = 0) -> int:
        """Return the last value of a field of signed integers (not zigzag)."""
        return _signed(self.number(field, default))

    def numbers(self, field: int) -> list[int]:
        """Return all signed integers of a field, packed or not."""
        found: list[int] = []
        for value in self.fields.get(field, []):
            if isinstance(value, int):
                found.append(_signed(value))
                continue
            at = 0
            while at < len(value):
                one, at = varint(value, at)
                found.append(_signed(one))
        return found

    def floats(self, field: int, kind: str = "<f4") -> NDArray[np.floating]:
        """Return all floats of a field, packed or not."""
        parts = [x for x in self.fields.get(field, []) if not isinstance(x, int)]
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), kind)

    def bytes(self, field: int) -> memoryview:
        """Return the last bytes of a field, none if it is missing."""
        values = [x for x in self.fields.get(field, []) if not isinstance(x, int)]
        return values[-1] if values else memoryview(b"")

    def text(self, field: int) -> str:
        """Return the last text of a field."""
        return bytes(self.bytes(field)).decode("utf-8", "replace")

    def texts(self, field: int) -> list[str]:
        """Return all texts of a field."""
        return [bytes(x.data).decode("utf-8", "replace") for x in self.messages(field)]

    def message(self, field: int) -> Message:
        """Return the last message of a field, an empty one if it is missing."""
        return Message(self.bytes(field), self.level + 1)

    def messages(self, field: int) -> list[Message]:
        """Return all messages of a field."""
        values = self.fields.get(field, [])
        return [Message(x, self.level + 1) for x in values if not isinstance(x, int)]

    def mapping(self, field: int) -> dict[str, Message]:
        """Return a map from texts to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(field)}

    def __contains__(self, field: int) -> bool:
        return field in self.fields


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the integer of variable length at a place, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("an integer has no end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value

"""Writes protocol buffers and flatbuffers for the tests, from field numbers and plain values."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(fields: Mapping[int, Any]) -> bytes:
    """Encode a message; lists are repeated fields, mappings are messages, texts and bytes both."""
    out = b""
    for number, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, Mapping):
                value = message(value)
            if isinstance(value, str):
                value = value.encode()
            if isinstance(value, bytes):
                out += varint(number << 3 | 2) + varint(len(value)) + value
            elif isinstance(value, float):
                out += varint(number << 3 | 5) + struct.pack("<f", value)
            else:
                out += varint(number << 3) + varint(int(value))
    return out


def packed(numbers: Sequence[int]) -> bytes:
    return b"".join(varint(x) for x in numbers)


class Table(dict[int, Any]):
    """A table of a flatbuffer: by field an ``(kind, number)``, text, table, bytes or list."""


def flatbuffer(root: Table, mark: bytes | None = None) -> bytes:
    builder = flatbuffers.Builder(0)
    builder.Finish(_table(builder, root), mark)
    return bytes(builder.Output())


def _table(builder: Any, table: Table) -> int:
    offsets = {}
    for slot, value in table.items():
        if isinstance(value, Table):
            offsets[slot] = _table(builder, value)
        elif isinstance(value, str):
            offsets[slot] = builder.CreateString(value)
        elif isinstance(value, list):
            inner = [
                _table(builder, x) if isinstance(x, Table) else builder.CreateString(x)
                for x in value
            ]
            builder.StartVector(4, len(inner), 4)
            for one in reversed(inner):
                builder.PrependUOffsetTRelative(one)
            offsets[slot] = builder.EndVector()
        elif not isinstance(value, tuple):
            offsets[slot] = builder.CreateNumpyVector(value)
    builder.StartObject(max(table, default=0) + 1)
    for slot, value in table.items():
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        elif value[0] == "b":
            builder.PrependInt8Slot(slot, value[1], -99)
        elif value[0] == "q":
            builder.PrependInt64Slot(slot, value[1], -99)
        else:
            builder.PrependInt32Slot(slot, value[1], -99999)
    return int(builder.EndObject())

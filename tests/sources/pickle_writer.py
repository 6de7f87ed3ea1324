"""Writes pickles for the tests, and the files of PyTorch around them, instruction by instruction.

So files can be made of classes that are not installed, and of arguments that no library writes.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles of an old `torch.save`


@dataclass(frozen=True)
class Name:
    """A class or function."""

    module: str
    name: str


@dataclass(frozen=True)
class Made:
    """What a function returns for arguments, with a state that it is given then."""

    function: Any
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """What lies elsewhere in the file."""

    key: Any


@dataclass(frozen=True)
class OldText:
    """A text of Python 2, which is bytes."""

    content: bytes


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + _code(value) + b"."


def _code(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case OldText():
            return b"T" + struct.pack("<I", len(value.content)) + value.content
        case tuple():
            return b"(" + b"".join(map(_code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_code(k) + _code(v) for k, v in value.items()) + b"u"
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Persistent():
            return _code(value.key) + b"Q"
        case Made():
            made = _code(value.function) + _code(value.args) + b"R"
            return made if value.state is None else made + _code(value.state) + b"b"
    raise TypeError(type(value).__name__)


def storage(key: str, count: int, kind: str = "FloatStorage", *view: Any) -> Persistent:
    """Name numbers of the file; in old files a view of them, or None, follows."""
    return Persistent(("storage", Name("torch", kind), key, "cpu", count, *view))


def tensor(
    held: Any, shape: Any, stride: Any = None, offset: int = 0, function: str = "_rebuild_tensor_v2"
) -> Made:
    """Make a tensor; its strides are those of numbers without gaps if none are given."""
    if stride is None:
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    more = (False, Made(Name("collections", "OrderedDict"))) if function.endswith("v2") else ()
    return Made(Name("torch._utils", function), (held, offset, shape, stride, *more))


def zipped(path: Path, files: Mapping[str, Any], method: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive; what is no bytes becomes a pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else pickled(content)
            archive.writestr(f"net/{name}", data)
    return path


def checkpoint(path: Path, value: Any, method: int = zipfile.ZIP_STORED, **data: bytes) -> Path:
    """Write what `torch.save` writes, with storages by their key."""
    members = {f"data/{key}": content for key, content in data.items()}
    return zipped(path, {"data.pkl": value, "version": b"3\n", **members}, method)


def old_stream(path: Path, value: Any, **data: tuple[int, bytes]) -> Path:
    """Write what `torch.save` wrote before 1.6: pickles, then storages ``(count, bytes)``."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickled(x) for x in (MAGIC, 1001, about, value, list(data))]
    parts += [struct.pack("<q", count) + content for count, content in data.values()]
    path.write_bytes(b"".join(parts))
    return path

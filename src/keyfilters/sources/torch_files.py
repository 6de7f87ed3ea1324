"""Files of PyTorch, whatever wrote them: zip and tar archives and old streams of pickles.

Everything is read by the inert machine of `keyfilters.sources.pickles`, tensors stay in the file.
"""

from __future__ import annotations

import io
import json
import mmap
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.errors import SourceError
from keyfilters.sources.pickles import Global, Thing, load_inert
from keyfilters.sources.torch_tensors import DTYPES, REBUILD, Storage, StoredTensor

__all__ = ["Zip", "aligned", "load_torch"]

MAGIC = 0x1950A86A20F9469CFC6C
DEEPEST = 4  # files inside pickles inside files


def load_torch(path: Path) -> Any:
    """Return what a file of PyTorch holds, with placeholders for all that would run code.

    Raises:
        ValueError: the file is damaged.
        SourceError: it is refused, with advice.
    """
    with path.open("rb") as file:
        start = file.read(300)
    if start.startswith(b"PK"):
        return _load_zip(path)
    if start[257:262] == b"ustar":
        return _load_tar(path)
    data = np.memmap(path, np.uint8, "c")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return _load_stream(stream, data, 0)


def _load_stream(stream: Any, data: Any, level: int) -> Any:
    """Load pickles that follow each other: of an old `torch.save`, or one alone."""
    if level > DEEPEST:
        raise ValueError("pickles lie in each other too deep")
    storages: dict[str, Storage] = {}

    def persistent(saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved or saved[0] == "module":
            return saved[1] if isinstance(saved, tuple) and len(saved) > 1 else Thing("persistent")
        kind, key = _name(saved[1]), str(saved[2])
        root = storages.setdefault(key, Storage(kind, _missing(key)))
        if len(saved) > 5 and isinstance(saved[5], tuple):  # a view, from a number on
            return Storage(kind, lambda: _held(root), int(saved[5][1]))
        return root

    rebuild = {
        **REBUILD,
        "torch.storage._load_from_bytes": lambda args: _from_bytes(args[0], level),
    }
    first = load_inert(stream, rebuild, persistent)
    if first != MAGIC or not isinstance(first, int):
        return first
    load_inert(stream)  # version of the protocol
    load_inert(stream)  # the machine that wrote it
    content = load_inert(stream, rebuild, persistent)
    keys = load_inert(stream)
    at = stream.tell()
    for key in map(str, keys if isinstance(keys, list) else []):
        (count,) = struct.unpack_from("<q", data, at)
        storage = storages.get(key)
        if storage is None:
            raise ValueError(f"no tensor has the storage {key!r}, whose size is not told")
        size = _itemsize(storage.kind)
        if not 0 <= count <= (len(data) - at - 8) // size:
            raise ValueError(f"it is cut short: a storage of {count} numbers does not fit")
        storage.load = partial(aligned, data, at + 8, at + 8 + count * size)
        at += 8 + count * size
    return content


def _from_bytes(content: Any, level: int) -> Any:
    """Return the storage that `pickle` keeps as a file of PyTorch inside its own."""
    if not isinstance(content, bytes):
        raise ValueError("a storage that is no bytes")
    return _load_stream(io.BytesIO(content), np.frombuffer(bytearray(content), np.uint8), level + 1)


def _held(storage: Storage) -> Any:
    if storage.held is None:
        storage.held = storage.load()
    return storage.held


def _missing(key: str) -> Callable[[], Any]:
    def load() -> Any:
        raise ValueError(f"the storage {key!r} is not in the file")

    return load


def aligned(data: Any, start: int, end: int) -> Any:
    """Return a part of a file; a copy where it does not lie as numbers must."""
    part = data[start:end]
    return part if start % 8 == 0 else part.copy()


def _name(value: Any) -> str:
    return value.name if isinstance(value, Global) else str(value)


def _itemsize(kind: str) -> int:
    dtype = DTYPES.get(kind.rpartition(".")[2].removesuffix("Storage"))
    return dtype.itemsize if dtype is not None else 1


def _load_zip(path: Path) -> Any:
    """Load a zip archive: of `torch.save`, TorchScript, or `torch.export`."""
    with zipfile.ZipFile(path) as archive:
        return _weights_in(Zip(archive, np.memmap(path, np.uint8, "c")))


def _weights_in(archive: Zip) -> Any:
    from keyfilters.sources.torch_exports import load_export

    if archive.level > DEEPEST:
        raise ValueError("archives lie in each other too deep")
    pickles = [x for x in archive.members if x.rpartition("/")[2] in ("data.pkl", "constants.pkl")]
    exported = [x for x in archive.members if x.endswith("model_weights_config.json")]
    nested = [x for x in archive.members if x.endswith("serialized_state_dict.pt")]
    if exported or nested:
        return load_export(archive, exported, nested)
    found = {x: archive.pickle(x) for x in sorted(pickles, key=lambda x: "constants" in x)}
    if not found:
        raise ValueError("it is a zip archive without weights of PyTorch")
    contents = [x for x in found.values() if x not in ((), None)]
    if len(contents) == 1:
        return contents[0]
    return {name.rpartition("/")[2].removesuffix(".pkl"): x for name, x in found.items()}


class Zip:
    """The members of a zip archive; what is not compressed stays in the file."""

    def __init__(self, archive: zipfile.ZipFile, data: Any, level: int = 0) -> None:
        self.data, self.level = data, level
        self.members = {x.filename: x for x in archive.infolist()}
        self.storages: dict[str, Storage] = {}
        self.unpacked = 0

    def bytes(self, name: str) -> Any:
        """Return the content of a member as a writable buffer."""
        member = self.members[name]
        at, stored = member.header_offset, member.compress_type == zipfile.ZIP_STORED
        header = self.data[at : at + 30].tobytes().ljust(30, b"\0")
        mark, name_size, extra = struct.unpack("<4s22xHH", header)
        start = at + 30 + name_size + extra
        end = start + (member.file_size if stored else member.compress_size)
        if mark != b"PK\3\4" or end > len(self.data):
            raise ValueError(f"the member {name!r} leads out of the archive")
        if stored:
            return aligned(self.data, start, end)
        if member.compress_type != zipfile.ZIP_DEFLATED:  # all that PyTorch reads
            raise ValueError(f"the member {name!r} is compressed in an unknown way")
        limit = 2**26 + 20 * len(self.data) - self.unpacked
        content = zlib.decompressobj(-15).decompress(self.data[start:end], max(limit, 0) + 1)
        if len(content) > limit:
            raise ValueError("the archive unpacks to far more than its own size")
        if zlib.crc32(content) != member.CRC:
            raise ValueError(f"the member {name!r} is damaged: its checksum is another")
        self.unpacked += len(content)
        return np.frombuffer(bytearray(content), np.uint8)

    def pickle(self, name: str) -> Any:
        """Load a pickle of the archive, whose storages are members of their own."""
        folder, _, file = name.rpartition("/")
        places = [file.removesuffix(".pkl"), "data", "constants"]

        def persistent(saved: Any) -> Any:
            if not isinstance(saved, tuple) or len(saved) < 3:
                return Thing("persistent")
            kind, key = _name(saved[1]), str(saved[2])
            paths = [f"{folder}/{place}/{key}".lstrip("/") for place in places]
            paths += [f"{folder}/{key}".lstrip("/")]
            member = next((x for x in paths if x in self.members), "")
            if not member:
                return Storage(kind, _missing(key))
            return self.storages.setdefault(member, Storage(kind, lambda: self._numbers(member)))

        return load_inert(io.BytesIO(self.bytes(name).tobytes()), REBUILD, persistent)

    def _numbers(self, member: str) -> Any:
        order = next((x for x in self.members if x.rpartition("/")[2] == "byteorder"), None)
        if order and self.bytes(order).tobytes() == b"big":
            raise ValueError("its numbers are stored big end first, which is not read")
        return self.bytes(member)

    def nested(self, name: str) -> Any:
        """Load a file of PyTorch that is a member."""
        content = self.bytes(name)
        if content[:2].tobytes() != b"PK":
            return _load_stream(io.BytesIO(content.tobytes()), content, 1)
        with zipfile.ZipFile(io.BytesIO(content.tobytes())) as archive:
            return _weights_in(Zip(archive, content, self.level + 1))

    def json(self, name: str) -> Any:
        """Return a member that is JSON."""
        return json.loads(self.bytes(name).tobytes())


def _load_tar(path: Path) -> Any:
    """Load the tar archive that PyTorch wrote before 0.2."""
    with tarfile.open(path, "r:") as archive:
        names = set(archive.getnames())
        if not {"pickle", "storages", "tensors"} <= names:
            raise SourceError(f"{path} is a tar archive without weights of PyTorch")

        def content(name: str) -> io.BytesIO:
            member = archive.extractfile(name)
            if member is None or archive.getmember(name).size > path.stat().st_size:
                raise ValueError(f"{name} is no file")
            return io.BytesIO(member.read())

        objects: dict[str, Any] = {}
        _tar_storages(content("storages"), objects)
        _tar_tensors(content("tensors"), objects)

        def persistent(saved: Any) -> Any:
            if isinstance(saved, tuple) and saved:
                return saved[0]  # the class of a module, before its source
            return objects.get(str(saved), Thing("persistent"))

        return load_inert(content("pickle"), REBUILD, persistent)


def _tar_storages(file: io.BytesIO, objects: dict[str, Any]) -> None:
    size = len(file.getbuffer())
    for _ in range(_count(load_inert(file), size)):
        key, _, kind = load_inert(file, REBUILD)
        (count,) = struct.unpack("<q", file.read(8))
        data = file.read(_count(count, size) * _itemsize(_name(kind)))
        numbers = np.frombuffer(bytearray(data), np.uint8)
        objects[str(key)] = Storage(_name(kind), partial(np.asarray, numbers))
    for key, root, offset, _ in load_inert(file):  # views
        held = objects[str(root)]
        objects[str(key)] = Storage(held.kind, held.load, int(offset))


def _tar_tensors(file: io.BytesIO, objects: dict[str, Any]) -> None:
    size = len(file.getbuffer())
    for _ in range(_count(load_inert(file), size)):
        key, storage, _ = load_inert(file, REBUILD)
        (axes,) = struct.unpack("<i4x", file.read(8))
        numbers = struct.unpack(f"<{2 * axes + 1}q", file.read(8 * (2 * _count(axes, 64) + 1)))
        held = objects.get(str(storage))
        if isinstance(held, Storage):
            shape, stride = numbers[:axes], numbers[axes:-1]
            objects[str(key)] = StoredTensor(held, numbers[-1], shape, stride)


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"expected a number of entries, got {value!r:.40}")
    return value

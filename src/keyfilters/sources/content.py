"""What a file is, by its bytes: magic numbers, the names in an archive, the shape of a message."""

from __future__ import annotations

import json
import mmap
import tarfile
import zipfile
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from keyfilters.errors import SourceError
from keyfilters.sources.wire import varint

__all__ = ["Content", "beside", "load_json", "mapped", "what_it_is"]

LARGEST_JSON = 2**28


class Content:
    """The first bytes of a file, and what can be told from them without a library.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            self.start = file.read(4096)
            file.seek(max(self.size - 64, 0))
            self.end = file.read(64)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names in a zip archive, none if it is none."""
        if not self.start.startswith(b"PK"):
            return frozenset()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return frozenset(archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return frozenset()

    @cached_property
    def tar_names(self) -> frozenset[str]:
        """The first names in a tar archive that is not compressed, none if it is none."""
        try:
            with tarfile.open(self.path, "r:") as archive:
                return frozenset(x.name for _, x in zip(range(8), archive, strict=False))
        except (tarfile.TarError, OSError, ValueError):
            return frozenset()

    @cached_property
    def fields(self) -> dict[int, int] | None:
        """Wire types of the fields of a protocol buffer by number; None if it is none.

        Of a message with many fields the first hundred are looked at.
        """
        found: dict[int, int] = {}
        data, at = mapped(self.path), 0
        try:
            for _ in range(100):
                if at == len(data):
                    break
                key, at = varint(data, at)
                number, kind = key >> 3, key & 7
                size = {1: 8, 5: 4}.get(kind, 0)
                if kind == 0:
                    _, at = varint(data, at)
                elif kind == 2:
                    size, at = varint(data, at)
                elif not size:
                    return None
                at += size
                if at > len(data) or not number:
                    return None
                found.setdefault(number, kind)
        except ValueError:
            return None
        return found or None

    @property
    def first_child(self) -> tuple[int, int] | None:
        """Number and wire type of the first field of the message in a message's first field."""
        data = memoryview(self.start)
        try:
            key, at = varint(data, 0)
            if key != 0x0A:
                return None
            _, at = varint(data, at)
            key, _ = varint(data, at)
        except ValueError:
            return None
        return key >> 3, key & 7

    def holds(self, *words: bytes) -> bool:
        """Whether a text file, up to a size, holds all of some words."""
        if self.size > LARGEST_JSON:
            return False
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            return all(m.find(word) >= 0 for word in words)

    @property
    def is_json(self) -> bool:
        """Whether it begins as a JSON object or list does."""
        return self.start.lstrip()[:1] in (b"{", b"[") and b"\0" not in self.start


def mapped(path: Path) -> memoryview:
    """Return the bytes of a file, which are loaded when they are looked at."""
    if not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def load_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: it is damaged, too large or too deep.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"a JSON file above {LARGEST_JSON // 2**20} MB")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("lists lie in each other too deep") from error


def beside(path: Path, name: str) -> Path:
    """Return a file that a model names, which must lie in the model's own folder.

    Links may lead into the blobs of the hub's cache that the folder belongs to, nowhere else.

    Raises:
        SourceError: it leads out of the folder, or is missing.
    """
    folder = path if path.is_dir() else path.parent
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in name or ":" in name[:3]:
        raise SourceError(f"{path} was refused, since it names {name!r}, outside its own folder")
    file = folder / parts
    if not file.is_file():
        raise SourceError(f"{path} lacks {name!r}; put it beside the model")
    allowed = [folder.resolve()]
    for parent in folder.absolute().parents:
        if parent.name.startswith("models--"):
            allowed.append(parent.resolve() / "blobs")
    if not any(file.resolve().is_relative_to(root) for root in allowed):
        raise SourceError(f"{path} was refused, since {name!r} is a link out of its own folder")
    return file


def what_it_is(path: Path) -> str:
    """Say what a file that cannot be read seems to be, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(300)
        size = path.stat().st_size
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    if not size:
        return "it is empty; fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the weights; type: git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; fetch the file itself"
    return f"of {size} bytes it is damaged or cut short; fetch or write it again"

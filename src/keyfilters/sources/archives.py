"""Unpacking archives (zip, tar, gz and like) into a folder, safely: bounded, and never outside."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path, PurePosixPath
from typing import IO, Any

from keyfilters.errors import SourceError

__all__ = ["is_archive", "looks_worth", "unpack"]

COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
MOST_FILES = 10_000
RATIO, FLOOR = 100, 2**26  # bytes that an archive may unpack to: a hundredfold, or 64 MB
LARGEST = 2**35
CHUNK = 2**20
ENDINGS = (".gz", ".bz2", ".xz", ".tgz", ".tbz2", ".txz")


def is_archive(path: Path) -> bool:
    """Whether the bytes of a file are those of an archive."""
    with path.open("rb") as file:
        start = file.read(262)
    if start.startswith((b"PK\3\4", *COMPRESSED)):
        return True
    return start[257:262] == b"ustar"


def looks_worth(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether an archive in a folder has a name, or holds names, of model files."""
    name = path.name.lower()
    if name.endswith((".tgz", ".tar.gz", ".tar", ".task")):
        return True
    if name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(x.lower().endswith(endings) for x in archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return True
    return name.endswith(ENDINGS) and name.rpartition(".")[0].endswith(endings)


def unpack(path: Path, folder: Path) -> list[tuple[str, str]]:
    """Unpack the files of an archive into an empty folder.

    Args:
        path: the archive.
        folder: where its files go.

    Returns:
        ``(name, reason)`` of members that were left out.

    Raises:
        SourceError: it unpacks to far more than its own size, or to too many files.
        Exception: whatever a damaged archive raises.
    """
    left = [min(max(RATIO * path.stat().st_size, FLOOR), LARGEST)]
    skipped: list[tuple[str, str]] = []
    for count, (name, file) in enumerate(_members(path)):
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name[:3] or "\0" in name:
            skipped.append((name, "leads out of the archive, not unpacked"))
            continue
        if count >= MOST_FILES:
            raise SourceError(f"{path} holds more than {MOST_FILES} files; unpack it yourself")
        target = folder / parts
        with file, _unpacked(path, target) as write:
            while chunk := file.read(CHUNK):
                left[0] -= len(chunk)
                if left[0] < 0:
                    raise SourceError(
                        f"{path} unpacks to more than {RATIO} times its size; unpack it yourself "
                        "if you trust it, and give the folder"
                    )
                write(chunk)
    return skipped


@contextmanager
def _unpacked(path: Path, target: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield what writes to a file; what the system refuses is no fault of the archive."""
    refused: list[OSError] = []

    def write(chunk: bytes) -> None:
        try:
            out.write(chunk)
            out.flush()
        except OSError as error:
            refused.append(error)
            raise

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            yield write
    except OSError as error:
        if refused or error.errno in (ENOSPC, EROFS, EDQUOT):
            raise SourceError(
                f"{path} cannot be unpacked into a temporary folder: {error.strerror}; set TMPDIR "
                "to a folder with enough room"
            ) from error
        raise


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the regular files of an archive with their names."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield member.filename, archive.open(member)
        return
    try:
        tar = tarfile.open(path, "r:*")  # noqa: SIM115
    except tarfile.ReadError:
        opener = next((x for mark, x in COMPRESSED.items() if start.startswith(mark)), None)
        if opener is None:
            raise
        name = path.name
        yield name[: name.rindex(".")] if name.lower().endswith(ENDINGS) else name, opener(path)
        return
    with tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isreg() else None
            if content is not None:
                yield entry.name, content

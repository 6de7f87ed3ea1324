"""Writing files so that each is at any moment the old or the new one, never a part.

What is not finished is called ``.unfinished-PROCESS-NUMBER``. A process that is killed leaves it
behind; `hold_folder` takes it away.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from keyfilters.errors import KeyFiltersError

__all__ = [
    "MEND",
    "hold_folder",
    "sweep",
    "typed_path",
    "unfinished_folder",
    "unfinished_in",
    "whole_file",
    "write_whole",
]

UNFINISHED = re.compile(r"\.unfinished-(\d+)-[0-9a-f]{8}")
LONGEST = 80  # characters of a name in a message
MEND = "fix this and run the same command again"


def typed_path(text: str | os.PathLike[str]) -> Path:
    """Return what a user typed for a file or folder, which need not be there, as a path.

    A leading ``~`` is the home folder.

    Raises:
        KeyFiltersError: nothing can have this name, or it cannot be looked at.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, half a character, no such user
        name = str(text) if len(str(text)) <= LONGEST else f"{str(text)[:LONGEST]}…"
        reason = getattr(error, "strerror", None) or error
        raise KeyFiltersError(f"{name!r} cannot be a file or a folder: {reason}") from error
    return path


def unfinished_in(folder: Path) -> Path:
    """Return a new name in a folder for a file or folder that is not finished yet."""
    return folder / f".unfinished-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside a folder, which is removed at the end."""
    unfinished = unfinished_in(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there, see `whole_file`.

    Args:
        path: the file.
        content: bytes, or text that is written in UTF-8.

    Raises:
        KeyFiltersError: it cannot be written; the last good file stays.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file beside its place, which is moved there if nothing fails.

    Missing parent folders are created. Processes and threads may write to one place at once: the
    later file stays. What a process leaves that is killed meanwhile, `sweep` removes.

    Args:
        path: where the file is to be.

    Raises:
        KeyFiltersError: it cannot be written; the last good file stays.
    """
    unfinished = unfinished_in(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105
    except BaseException as error:  # an interrupt as well
        with suppress(OSError):
            unfinished.unlink()
        if not isinstance(error, OSError):
            raise
        stays = ""
        with suppress(OSError):  # a name that is too long
            stays = "; the last good file stays" * path.is_file()
        message = f"cannot write {path}: {error.strerror or error}{stays}"
        raise KeyFiltersError(f"{message}; {MEND}") from error


def sweep(folder: Path) -> None:
    """Remove unfinished files and folders whose process is gone; for a folder of one machine."""
    for path in folder.glob(".unfinished-*"):
        found = UNFINISHED.fullmatch(path.name)
        if found is None or _alive(int(found[1])):
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other commands out of it; what killed ones left is removed.

    The lock is the system's own (``flock``) on the folder: it ends with the process, however that
    ends, and leaves no file. Where a file system has no such lock, nothing is locked. Folders that
    were made and are still empty at the end are removed.

    Raises:
        KeyFiltersError: another process holds the folder, or it cannot be written to.
    """
    made = [x for x in (folder, *folder.parents) if not x.exists()]
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, made)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "it is read-only")
            if _locked(folder, stack):
                sweep(folder)
        except OSError as error:
            reason = error.strerror or error
            raise KeyFiltersError(
                f"cannot write to {folder}: {reason}; give another folder, or make it writable"
            ) from error
        yield


def _locked(folder: Path, stack: ExitStack) -> bool:
    """Lock a folder until the stack is closed; False where that is not known."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    place = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, place)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KeyFiltersError(
            f"another command is writing to {folder}; wait for its end, or give another folder"
        ) from None
    except OSError:  # a file system without such locks
        return False
    if not folder.exists() or not os.path.samestat(os.fstat(place), folder.stat()):
        raise KeyFiltersError(
            f"{folder} was removed by another command that ended just now; run this one again"
        )
    return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it holds something by now
            folder.rmdir()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

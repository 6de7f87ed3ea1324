"""Writing files so that each is at any moment the old or the new one, never a part.

What is not finished is called ``.unfinished-PROCESS-NUMBER``. A process that is killed leaves it
behind; `hold_folder` takes it away. What cannot be written is one error, see `refuse_unwritten`.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from keyfilters.errors import UNFINISHED, KeyFiltersError, refuse_unwritten
from keyfilters.interrupts import uninterrupted

__all__ = [
    "hold_folder",
    "move_whole",
    "sweep",
    "temporary_folder",
    "typed_path",
    "unfinished_folder",
    "unfinished_in",
    "whole_file",
    "write_whole",
]

LONGEST = 80  # characters of a typed name in a message


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
        mend = "; give a shorter name" * (getattr(error, "errno", None) == errno.ENAMETOOLONG)
        raise KeyFiltersError(f"{name!r} cannot be a file or a folder: {reason}{mend}") from error
    return path


def unfinished_in(folder: Path) -> Path:
    """Return a new name in a folder for a file or folder that is not finished yet."""
    return folder / f".unfinished-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside a folder, which is removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with _removed_at_end(unfinished_in(folder)) as unfinished:
        yield unfinished


@contextmanager
def _removed_at_end(folder: Path) -> Iterator[Path]:
    """Make a folder that only this user may read, and remove it at the end."""

    def remove() -> None:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)

    try:
        try:
            folder.mkdir(mode=0o700)  # no other process uses this name
            yield folder
        finally:
            remove()
    finally:  # once more: a signal may have come before the first time
        remove()


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
    unfinished, made = unfinished_in(path.parent), list[Path]()
    stays = ""
    with suppress(OSError):  # a name that is too long
        stays = "the last good file stays" * path.is_file()
    with refuse_unwritten(path, stays):
        try:
            made += _missing(path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.touch(exist_ok=False)
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)  # noqa: PTH105
        except BaseException:  # an interrupt as well
            with suppress(OSError):
                unfinished.unlink()
            _remove_empty(made)
            raise


def move_whole(files: Sequence[Path], folder: Path) -> None:
    """Move files into a folder, all of them or none; what they replace is put back if one fails.

    Args:
        files: of the same file system as the folder; the last one comes last.
        folder: where they go.

    Raises:
        OSError: one cannot be moved.
    """
    moved: list[tuple[Path, Path]] = []
    with unfinished_folder(folder) as aside:
        try:
            for number, file in enumerate(files):
                place = folder / file.name
                before = Path()
                if place.exists():
                    before = aside / str(number)  # a longer name might be too long
                    _keep(place, before)
                moved.append((place, before))
                file.replace(place)
        except BaseException:
            with uninterrupted():
                for place, before in moved:
                    if before != Path():
                        before.replace(place)
                    else:
                        place.unlink(missing_ok=True)
            raise


def _keep(file: Path, aside: Path) -> None:
    """Keep a file under a second name: as a link, or a copy where there are no links."""
    try:
        os.link(file, aside, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(file, aside, follow_symlinks=False)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder for what is unpacked or built, which is removed at the end.

    Raises:
        KeyFiltersError: there is no place for it, or it is full.
    """
    place: Path | None = None
    try:
        name = f"keyfilters-{secrets.token_hex(8)}"
        with _removed_at_end(Path(tempfile.gettempdir()) / name) as place:
            yield place
    except OSError as error:
        if place:
            raise
        reason = error.strerror or error
        raise KeyFiltersError(
            f"cannot make a temporary folder: {reason}; set TMPDIR to a folder that can be written"
        ) from error


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
    stack = ExitStack()

    def give_back() -> None:
        with uninterrupted():
            stack.close()

    try:
        try:
            with refuse_unwritten(folder):
                stack.callback(_remove_empty, _missing(folder))
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "it is read-only")
                if _locked(folder, stack):
                    sweep(folder)
            yield
        finally:
            give_back()
    finally:  # once more: a signal may have come before the first time
        give_back()


def _locked(folder: Path, stack: ExitStack) -> bool:
    """Lock a folder until the stack is closed; False where that is not known."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    with uninterrupted():
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


def _missing(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there yet, the innermost first."""
    return [x for x in (folder, *folder.parents) if not x.exists()]


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

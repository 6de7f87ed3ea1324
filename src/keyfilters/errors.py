"""The errors a user can mend: what was got, what was expected, what to type."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = re.compile(r"\.unfinished-(\d+)-[0-9a-f]{8}")  # see `keyfilters.files`
LONGEST_PATH = 300  # of a path, whose middle is cut
PLACE = "give another folder, or make it writable"
MENDS = {
    errno.ENOSPC: "free some space or give another folder",
    errno.EDQUOT: "free some space or give another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or give another folder",
    errno.EROFS: PLACE,
    errno.EACCES: PLACE,
    errno.EPERM: PLACE,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of the path is a file: give another folder",
    errno.EEXIST: "a part of the path is a file: give another folder",
    errno.EISDIR: "move the folder of this name away",
}


class KeyFiltersError(ValueError):
    r"""Base class of every error that the caller can mend; the message says how, in one line.

    Line breaks, such as those of a library's own message that is quoted, become blanks.

    >>> str(KeyFiltersError("cannot be read (bad header\n); fetch it again"))
    'cannot be read (bad header); fetch it again'
    """

    def __init__(self, *told: object) -> None:
        super().__init__(*(_one_line(x) if isinstance(x, str) else x for x in told))


class SourceError(KeyFiltersError):
    """A source is missing, unknown, damaged or refused."""


class NoFiltersError(SourceError):
    """A source was read but holds no depthwise filter."""


class UnreadableError(KeyFiltersError):
    """A damaged image was met when its turn came, long after the work began."""


class MissingExtraError(KeyFiltersError):
    """An optional dependency is needed; the message names the extra to install."""

    def __init__(self, purpose: str, extra: str) -> None:
        command = f"pip install 'keyfilters[{extra}]'"
        super().__init__(f"{purpose} needs an extra package; type: {command}")


@contextmanager
def needing(extra: str, purpose: str) -> Iterator[None]:
    """Turn a missing package into an error that says what to install.

    Args:
        extra: the extra of keyfilters that installs it.
        purpose: what needs it, the start of the sentence.

    Raises:
        MissingExtraError: something imported in the block is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(purpose, extra) from error


@contextmanager
def refuse_damage(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while the content of a file is read into one error that names it.

    Args:
        path: of the file.
        kind: what it should be, such as "a filter bank".

    Raises:
        SourceError: anything but an error of ours was raised in the block.
    """
    try:
        yield
    except KeyFiltersError:
        raise
    except Exception as error:  # damaged files make libraries raise nearly anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise SourceError(f"{path} cannot be read as {kind} ({reason})") from error


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message: without unfinished folders, a long one without its middle.

    >>> shown("out/.unfinished-12-0123abcd/bank.safetensors")
    'out/bank.safetensors'
    """
    text = os.fspath(path)
    parts = Path(text).parts
    if kept := [x for x in parts if not UNFINISHED.fullmatch(x)]:
        text = str(Path(*kept)) if len(kept) < len(parts) else text
    half = LONGEST_PATH // 2
    return text if len(text) <= LONGEST_PATH else f"{text[:half]}…{text[-half:]}"


def mend_of(error: BaseException) -> str:
    """Return what to do about something that could not be written.

    >>> mend_of(OSError(errno.ENOSPC, "No space left on device"))
    'free some space or give another folder, and run the same command again'
    """
    system = _system_error(error) or error
    number, text = getattr(system, "errno", None), str(error)  # libraries quote the system's words
    known = [mend for x, mend in MENDS.items() if x == number or os.strerror(x) in text]
    return f"{known[0] if known else 'fix this'}{',' * bool(known)} and run the same command again"


@contextmanager
def refuse_unwritten(path: str | os.PathLike[str], stays: str = "") -> Iterator[None]:
    """Turn what goes wrong while something is written into one error that names it.

    Args:
        path: the file or folder that is written.
        stays: what is unchanged, such as "the last good file stays".

    Raises:
        KeyFiltersError: the system refused to write.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, KeyFiltersError) or not (reason := why_unwritten(error)):
            raise
        kept = f"; {stays}" if stays else ""
        raise KeyFiltersError(
            f"cannot write {shown(path)}: {reason}{kept}; {mend_of(error)}"
        ) from error


def why_unwritten(error: BaseException) -> str:
    """Return why something could not be written; nothing where the error is of another kind.

    PyTorch and safetensors have errors of their own for what the system refuses.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    kind, text = type(error).__name__, str(error)
    if kind == "SafetensorError" or (
        isinstance(error, RuntimeError) and ("inline_container" in text or "StreamWriter" in text)
    ):
        system = _system_error(error)
        return (system and system.strerror) or " ".join(text.split())[:200]
    return ""


def _system_error(error: BaseException | None) -> OSError | None:
    """Return what the system said, where a library raised an error of its own after it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        error = error.__cause__ or error.__context__
    return None


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(lines).replace(" )", ")") if len(lines) > 1 else text


def nearest(name: str, known: Iterable[str], *, count: int = 5) -> str:
    """Return the tail of an error message that lists the known names nearest to `name`.

    >>> nearest("convnext_tiy", ["convnext_tiny", "resnet18"])
    '; the nearest names are: convnext_tiny'
    >>> nearest("zzz", ["convnext_tiny"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; the nearest names are: {', '.join(matches)}" if matches else ""

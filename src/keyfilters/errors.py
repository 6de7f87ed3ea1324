"""The errors a user can mend: what was got, what was expected, what to type."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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

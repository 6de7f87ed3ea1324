"""Writing a file so that it is at any moment the old or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyfilters.errors import KeyFiltersError

__all__ = ["whole_file", "write_whole"]


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there, see `whole_file`.

    Args:
        path: the file.
        content: text is written as UTF-8.

    Raises:
        KeyFiltersError: it cannot be written; the last good file stays.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file beside its place, which is moved there if nothing fails.

    Missing parent folders are created. Processes and threads may write to one place at once: the
    later file stays. A process that is killed meanwhile leaves its part as
    ``.NAME.PROCESS.NUMBER`` beside the last good file.

    Args:
        path: where the file is to be.

    Raises:
        KeyFiltersError: it cannot be written; the last good file stays.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if not isinstance(error, OSError):
            raise
        stays = "; the last good file stays" * path.is_file()
        message = f"cannot write {path}: {error.strerror or error}{stays}"
        raise KeyFiltersError(f"{message}; fix this and run the same command again") from error

"""Writing a file so that it is at any moment the old or the new one, never a part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from keyfilters.errors import KeyFiltersError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there, making folders where they lack.

    Two processes may write to one place: the later file stays. A process that is killed meanwhile
    leaves its part as ``.NAME.PROCESS`` beside the last good file.

    Args:
        path: the file.
        content: text is written as UTF-8.

    Raises:
        KeyFiltersError: it cannot be written; the last good file stays.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        stays = "; the last good file stays" * path.is_file()
        message = f"cannot write {path}: {error.strerror or error}{stays}"
        raise KeyFiltersError(f"{message}; mend that and give the same command again") from error

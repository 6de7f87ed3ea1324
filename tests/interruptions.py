"""Interrupting a work at every line of the modules that take things and give them back."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def interrupted_at_every_line(work: Callable[[], None], files: tuple[str, ...]) -> Iterator[bool]:
    """Run a work again and again, with a SIGINT at one line more each time.

    Args:
        work: takes things and gives them back; no two runs may differ.
        files: ends of the paths of the source files whose lines count.

    Yields:
        Whether the work was interrupted: all but those at the very end must be.
    """
    lines, _ = _interrupted(work, files, at=0)
    for at in range(1, lines + 1):
        yield _interrupted(work, files, at)[1]


def _interrupted(work: Callable[[], None], files: tuple[str, ...], at: int) -> tuple[int, bool]:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(files):
            return None
        count += event == "line"
        if event == "line" and count == at:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except (KeyboardInterrupt, SystemExit):
        return count, True
    finally:
        sys.settrace(before)
    return count, False

"""Interrupting a work at every line of the modules that take things and give them back."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class StoppedError(BaseException):
    """Raised by the handlers of the signals that are sent."""


def interrupted_at_every_line(
    work: Callable[[], None], files: tuple[str, ...], number: signal.Signals = signal.SIGINT
) -> Iterator[int]:
    """Run a work again and again, with a signal at one line later each time.

    The handlers of SIGINT and SIGTERM raise meanwhile, as those of the command line do, and each
    signal must end the work.

    Args:
        work: takes things and gives them back.
        files: ends of the paths of the source files whose lines count.
        number: of the signal.

    Yields:
        The number of the line; the last run is the one that has ended before it.
    """

    def stop(*_: Any) -> None:
        raise StoppedError

    held = {x: signal.signal(x, stop) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        for line in itertools.count(1):
            sent, stopped = stopped_at(work, files, line, number)
            assert sent == stopped, f"the signal at line {line} was lost"
            assert all(signal.getsignal(x) is stop for x in held), f"another handler, line {line}"
            yield line
            if not sent:
                assert line > len(files), "no line of these files was run"
                return
    finally:
        for x, handler in held.items():
            signal.signal(x, handler)


def stopped_at(
    work: Callable[[], None], files: tuple[str, ...], line: int, number: signal.Signals
) -> tuple[bool, bool]:
    """Run a work with a signal at one of its lines, whose handler raises `StoppedError`.

    Returns:
        Whether the line was reached, where the signal is sent, and whether its handler was called.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            count += 1
            if count == line:
                sys.settrace(None)
                signal.raise_signal(number)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except StoppedError:
        return count >= line, True
    finally:
        sys.settrace(before)
    return count >= line, False

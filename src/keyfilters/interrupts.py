"""Delay SIGINT and SIGTERM until a short block has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["uninterrupted"]

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until a ``with`` block has ended, then send them again.

    For what is taken or given back: a lock, a thread, a folder. The block should be short, since
    nothing but SIGKILL stops it. Python raises in the main thread only; in other threads, and for
    signals that no Python function handles, the block changes nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {n: held for n in STOPS if main and callable(held := signal.getsignal(n))}
    came: list[int] = []

    def wait(number: int, _: FrameType | None) -> None:
        came.append(number)

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        raised: BaseException | None = None
        while True:
            try:
                for number, held in handlers.items():
                    signal.signal(number, held)
                break
            except BaseException as error:  # of a handler that is back: put the other back too
                raised = error
        try:
            _send(list(dict.fromkeys(came)))
        finally:
            if raised is not None:
                raise raised


def _send(numbers: Sequence[int]) -> None:
    """Send signals to this process, each one also if the handler of another raises."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _send(numbers[1:])

"""Delay SIGINT and SIGTERM until a short block has ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["uninterrupted"]

STOPS = (signal.SIGINT, signal.SIGTERM)
Handlers = Mapping[int, Callable[[int, FrameType | None], Any]]
Came = list[tuple[int, FrameType | None]]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until a ``with`` block has ended; their handlers are called then.

    For what is taken or given back: a lock, a thread, a folder. The block should be short, since
    nothing but SIGKILL stops it, and no ``yield`` may stand in it. Python calls handlers in the
    main thread only; in other threads, and for signals that no Python function handles, the block
    changes nothing.
    """
    handlers, came = _handlers(), Came()

    def wait(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        _end(handlers, came)


def _handlers() -> Handlers:
    """Return the Python functions that handle the signals, if this thread may replace them."""
    found: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread of the main interpreter
        for number in STOPS:
            held = signal.getsignal(number)
            if callable(held):
                signal.signal(number, held)
                found[number] = held
    return found


def _end(handlers: Handlers, came: Came) -> None:
    """Call the handlers of the signals that came, and put all back, also if one raises."""
    raised: BaseException | None = None
    while True:
        try:
            while came:
                number, frame = came.pop(0)
                handlers[number](number, frame)
            for number, held in handlers.items():
                signal.signal(number, held)
            if not came:
                break
        except BaseException as error:  # of a handler; those that are left have their turn
            raised = error
    if raised is not None:
        raise raised

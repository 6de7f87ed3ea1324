"""Let an interrupt wait until something short is whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the end of a ``with`` block, where they raise as before.

    For what is taken or given back: a lock, a thread, a folder. Only the main thread is ever
    interrupted; in others, and for signals that Python does not handle, the block changes nothing.
    """
    came: list[int] = []
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(before := signal.getsignal(number)):
                with suppress(ValueError):  # not in the main thread
                    signal.signal(number, lambda number, _: came.append(number))
                    stack.callback(signal.signal, number, before)
        yield
    if came:
        signal.raise_signal(came[0])

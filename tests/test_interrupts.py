from __future__ import annotations

import itertools
import signal
import threading

import pytest

from keyfilters.interrupts import uninterrupted

from .interruptions import StoppedError, interrupted_at_every_line, stopped_at

FILES = ("keyfilters/interrupts.py", "contextlib.py", "signal.py", "enum.py")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_line_is_raised_and_handlers_come_back(number: signal.Signals) -> None:
    begun, whole = [], []

    def work() -> None:
        with uninterrupted():
            begun.append(1)
            whole.append(1)

    assert list(interrupted_at_every_line(work, FILES, number))[-1] > 20
    assert len(begun) == len(whole) > 5


def test_a_signal_that_came_is_handled_wherever_another_one_comes_at_the_end() -> None:
    came: list[int] = []
    begun: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        raise StoppedError

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            begun.append(1)

    held = {x: signal.signal(x, handle) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        both = 0
        for line in itertools.count(1):
            came.clear(), begun.clear()
            sent, _ = stopped_at(work, FILES, line, signal.SIGINT)
            if not sent:
                break
            if begun:
                assert set(came) == {signal.SIGINT, signal.SIGTERM}, line
                both += 1
            assert [signal.getsignal(x) for x in held] == [handle, handle], line
        assert both > 10
    finally:
        for x, handler in held.items():
            signal.signal(x, handler)


def test_a_signal_is_raised_beside_an_error_and_beside_another_signal() -> None:
    came = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            raise StoppedError

    held = {x: signal.signal(x, handle) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(StoppedError) as raised, uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert came == []
            raise OSError("full")
        assert isinstance(raised.value.__context__, OSError)
        assert came == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    finally:
        for x, handler in held.items():
            signal.signal(x, handler)


def test_other_threads_change_no_handler() -> None:
    seen = []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]

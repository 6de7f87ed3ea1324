"""Work on one thread each: limits that threads share, and parts of one work for several threads.

The matrices here are small. More threads a matrix gain nothing, wait for each other at every step
on a busy machine (half a minute then becomes ten), and change the last digits of sums with the
number of cores. Work is spread over its parts instead.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from keyfilters.interrupts import uninterrupted

__all__ = [
    "Performer",
    "by_threads",
    "in_parts",
    "is_forked",
    "one_thread",
    "one_thread_if_forked",
    "parts_of",
    "piece_by_piece",
    "pieces_done_by",
    "side_by_side",
    "undivided",
    "workers",
]

Result = TypeVar("Result")


class _Limit:
    """The limit of the whole process, counted: the last of the threads inside takes it away.

    BLAS has one number of threads a process; torch and OpenMP have one each thread, and torch
    another one for threads that it has not met yet. A thread of its own limits BLAS, since
    threadpoolctl lets only the thread that set a limit take it away.
    """

    def __init__(self, forked: bool = False) -> None:
        self.forked = forked
        self.lock = threading.Lock()
        self.inside = 0
        self.threads = 1  # torch's, of the first thread that came in
        self.controller: Any = None
        self.blas: Any = None
        self.keeper: Any = None
        self.own = threading.local()

    def enter(self) -> None:
        with uninterrupted(), self.lock:
            # Nothing is torch's own in a thread that meets it here: it takes over the limit.
            before = torch.get_num_threads()
            if not self.inside:
                self.threads = before
                self.controller = ThreadpoolController()
                self.keeper = ThreadPoolExecutor(1)
                self.keeper.submit(self._limit_blas).result()
            elif before == 1:
                before = self.threads
            openmp = self.controller.select(user_api="openmp").limit(limits=1)
            torch.set_num_threads(1)
            self.inside += 1
            self.own.inside, self.own.threads, self.own.openmp = True, before, openmp

    def _limit_blas(self) -> None:
        self.blas = self.controller.select(user_api="blas").limit(limits=1)
        self.blas.__enter__()

    def leave(self) -> None:
        if not getattr(self.own, "inside", False):
            return
        with uninterrupted(), self.lock:
            self.inside -= 1
            self.own.openmp.restore_original_limits()
            if not self.inside:
                self.keeper.submit(self.blas.__exit__, None, None, None).result()
                self.keeper.shutdown()
                torch.set_num_threads(self.threads)  # which new threads take over
            torch.set_num_threads(self.own.threads)
            self.own.inside = False


_limit = _Limit()


def _after_fork() -> None:
    """Forget the threads of the parent, of which none lives on in the child."""
    global _limit
    _limit = _Limit(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, BLAS and OpenMP use one thread inside a ``with`` block or a decorated function.

    Several threads may be inside at a time. When the last has left, everything is as before. Inside
    another such block of its thread a block changes nothing: a generator that an error has left
    behind ends its block after the outer one, or never.
    """
    limit = _limit
    if getattr(limit.own, "inside", False):
        yield
        return
    try:
        try:
            limit.enter()
            yield
        finally:
            limit.leave()
    finally:  # once more: a signal may have come before the first time
        limit.leave()


def is_forked() -> bool:
    """Say whether this process is a fork, where OpenMP would wait for threads it has lost."""
    return _limit.forked


@contextmanager
def one_thread_if_forked() -> Iterator[None]:
    """As `one_thread` in a forked process, and nothing elsewhere."""
    with one_thread() if is_forked() else nullcontext():
        yield


def workers() -> int:
    """Return how many parts may run at a time: one in a forked process and within a part."""
    if is_forked() or getattr(_limit.own, "part", False):
        return 1
    inside = getattr(_limit.own, "inside", False)
    return _limit.own.threads if inside else torch.get_num_threads()


@contextmanager
def undivided() -> Iterator[None]:
    """Let all that is called inside run on this thread, also what would divide its work.

    How a work is divided can change the last digits of its results.
    """
    before = getattr(_limit.own, "part", False)
    _limit.own.part = True
    try:
        with one_thread():
            yield
    finally:
        _limit.own.part = before


def _as_part(task: Callable[[], Result]) -> Result:
    """Do a task in a thread of its own, on one thread, and so all that it calls."""
    with undivided():
        return task()


def side_by_side(tasks: Sequence[Callable[[], Result]]) -> Iterator[Result]:
    """Yield what each task returns, in their order; each runs on one thread.

    As many run at a time as torch has threads, or had before `one_thread`; in a forked process, and
    within such a task, one. No more tasks are started than that and one, before their results are
    taken. Tasks must not share a random generator.
    """
    threads = min(workers(), len(tasks))
    with one_thread():
        if threads < 2:
            yield from (task() for task in tasks)
        else:
            with ThreadPoolExecutor(threads) as pool:
                started: deque[Future[Result]] = deque()
                for task in tasks:
                    with uninterrupted():  # or a lock of the pool might never be given back
                        started.append(pool.submit(_as_part, task))
                    if len(started) > threads:
                        yield started.popleft().result()
                while started:
                    yield started.popleft().result()


class Performer(Protocol):
    """Does a work for every part, wherever it likes."""

    def __call__(
        self, work: Callable[[slice], Result], parts: Sequence[slice], /
    ) -> Iterator[Result]:
        """Yield what the work returns for every part, in order."""


def by_threads(work: Callable[[slice], Result], parts: Sequence[slice]) -> Iterator[Result]:
    """Yield what a work returns for every part, in order, done as `side_by_side` does tasks."""
    yield from side_by_side([partial(work, part) for part in parts])


_performer: ContextVar[Performer] = ContextVar("performer", default=by_threads)


@contextmanager
def pieces_done_by(performer: Performer) -> Iterator[None]:
    """Let another one than the threads do what `piece_by_piece` is called for in a block."""
    token = _performer.set(performer)
    try:
        yield
    finally:
        _performer.reset(token)


def piece_by_piece(
    work: Callable[[slice], Result], count: int, size: int
) -> Iterator[tuple[slice, Result]]:
    """Yield the slice of every part of a whole and what a work returns for it, in order.

    Args:
        work: called with the slice of every part, in threads or as `pieces_done_by` says: perhaps
            in other processes, so that it must only return what it found.
        count: length of the whole.
        size: length of a part; the last one may be shorter.
    """
    parts = parts_of(count, size)
    yield from zip(parts, _performer.get()(work, parts), strict=True)


def in_parts(work: Callable[[slice], None], count: int, size: int) -> None:
    """Do a work part by part, as many parts at a time as `side_by_side` does tasks.

    Args:
        work: called with the slice of every part.
        count: length of the whole.
        size: length of a part; the last one may be shorter.
    """
    deque(by_threads(work, parts_of(count, size)), maxlen=0)


def parts_of(count: int, size: int) -> list[slice]:
    """Return slices of a length, of which the last may be shorter, that cover a whole."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]

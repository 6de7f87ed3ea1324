from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import threadpoolctl
import timm
import torch

import keyfilters as kf
from keyfilters import threads
from keyfilters.threads import (
    in_parts,
    one_thread,
    piece_by_piece,
    pieces_done_by,
    side_by_side,
)
from keyfilters.training import Data, Recipe, train

from .interruptions import interrupted_at_every_line


def blas() -> list[int]:
    return [x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]


def inside() -> int:
    """Return the number of blocks that threads are in; none is just being left."""
    with threads._limit.lock:
        return threads._limit.inside


def threads_left(allowed: int) -> int:
    """Return how many threads are alive, after those that a lost pool leaves have ended."""
    deadline = time.monotonic() + 60
    while threading.active_count() > allowed and time.monotonic() < deadline:
        gc.collect()  # which tells the threads of the pool
        time.sleep(0.01)
    return threading.active_count()


def in_new_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture
def three_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_that_overlap_leave_all_as_it_was() -> None:
    before = blas()
    entered, leave = threading.Event(), threading.Event()

    def long() -> int:
        with one_thread():
            entered.set()
            assert leave.wait(60)
            own = torch.get_num_threads()
        assert torch.get_num_threads() == 3
        return own

    for first in ("other", "this"):
        entered.clear()
        leave.clear()
        with ThreadPoolExecutor(1) as pool:
            if first == "other":  # and it leaves last
                task = pool.submit(long)
                assert entered.wait(60)
                with one_thread(), one_thread():
                    assert torch.get_num_threads() == 1 and set(blas()) <= {1}
                assert torch.get_num_threads() == 3 and set(blas()) <= {1}
                leave.set()
            else:
                with one_thread():
                    task = pool.submit(long)
                    assert entered.wait(60)
                    leave.set()
                    assert task.result() == 1
                    assert torch.get_num_threads() == 1 and set(blas()) <= {1}
            assert task.result() == 1
        assert blas() == before and torch.get_num_threads() == 3
        assert in_new_thread(torch.get_num_threads) == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_inside_leaves_all_as_it_was() -> None:
    before = blas()
    with pytest.raises(ZeroDivisionError), one_thread():
        in_parts(lambda part: 1 // 0, 10, 3)  # type: ignore[arg-type, return-value]
    assert blas() == before and torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_abandoned_generator_ends_no_limit_but_its_own() -> None:
    before = blas()
    with one_thread():
        left = side_by_side([lambda: 1] * 9)  # which is inside a block of its own
        assert next(left) == 1
    deadline = time.monotonic() + 60
    while inside() > 0 and time.monotonic() < deadline:
        time.sleep(0.01)  # tasks that were started are not done
    assert blas() == before and torch.get_num_threads() == 3
    for _ in range(2):  # while it waits, and when it has been closed
        with one_thread():
            assert torch.get_num_threads() == 1 and set(blas()) <= {1}
        assert blas() == before and torch.get_num_threads() == 3
        left.close()


@pytest.mark.usefixtures("three_threads")
def test_parts_cover_the_whole_on_one_thread_each() -> None:
    seen, inside = np.zeros(10, int), set()

    def work(part: slice) -> None:
        seen[part] += 1
        inside.add(torch.get_num_threads())

    for size in (1, 3, 10, 99):
        in_parts(work, 10, size)
    in_parts(work, 0, 4)
    assert (seen == 4).all() and inside == {1}


W = np.random.default_rng(0).normal(size=(20, 5, 5))


def _network(size: int) -> torch.nn.Sequential:
    """Filters large enough for several threads."""
    layers = [torch.nn.Conv2d(1, 64, 1), torch.nn.Conv2d(64, 64, size, groups=64, padding="same")]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(64 * 64, 10))


def _trained() -> int:
    recipe = Recipe.from_dict({"schedule": {"steps": 1}})
    return len(train(recipe, model=_network(7), device="cpu").history)


IMAGES = torch.zeros(500, 3, 64, 64, dtype=torch.uint8)  # made before the fork
LABELS = torch.arange(500) % 2


WORKS: dict[str, Callable[[], int]] = {
    "match": lambda: len(kf.match(W, null_draws=0)),
    "assign": lambda: len(kf.KeySet.random(4, 5).assign(W, chunk=3).a),
    "read": lambda: len(kf.read(_network(31))),
    "initialise": lambda: len(kf.initialize_filters_(_network(31), "default")),
    "replace": lambda: len(kf.replace_filters_(_network(5), kf.KeySet.random(4, 5))),
    "freeze": lambda: len(kf.freeze_filters_(timm.create_model("efficientnet_lite0")).table),
    "published": lambda: len(kf.KeySet.published("lindeberg2026-B", 31).filters),
    "data": lambda: len(Data("black", IMAGES, LABELS, IMAGES, LABELS, ("a", "b")).mean),
    "train": _trained,
}


def _forked(work: str, queue: Any) -> None:
    torch.set_num_threads(2)
    try:
        queue.put(WORKS[work]())
    except Exception as error:  # told at once, not after the time limit
        queue.put(repr(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("work", WORKS)
def test_a_forked_process_does_not_hang(work: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    (torch.ones(300, 300) @ torch.ones(300, 300)).sum()
    torch.ones(10**6).add_(1)  # OpenMP has threads now, which the child will lack
    torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_forked, args=(work, queue))
    with one_thread():  # whose count the child must not inherit
        child.start()
    try:
        found = queue.get(timeout=120)
        assert isinstance(found, int) and found > 0, found
    finally:
        child.kill()
        child.join()
    assert not threads._limit.forked


def test_side_by_side_keeps_the_order_and_gives_each_task_one_thread() -> None:
    def task(number: int) -> tuple[int, int, int]:
        return number, torch.get_num_threads(), max(blas(), default=1)

    for allowed in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(allowed)
        try:
            found = list(side_by_side([partial(task, number) for number in range(7)]))
            assert torch.get_num_threads() == allowed
            with one_thread():  # which keeps in mind how many threads there were
                inside = list(side_by_side([threading.get_ident] * 2))
        finally:
            torch.set_num_threads(before)
        assert found == [(number, 1, 1) for number in range(7)]
        assert (inside[0] == threading.get_ident()) == (allowed == 1)


def test_side_by_side_raises_the_error_of_a_task_and_leaves_all_as_it_was() -> None:
    before = torch.get_num_threads(), blas()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side([lambda: 1 // 0, lambda: 1]))
    assert (torch.get_num_threads(), blas()) == before


def test_pieces_may_be_done_by_another_one_and_come_in_order() -> None:
    seen: list[slice] = []

    def elsewhere(work: Callable[[slice], Any], parts: Sequence[slice]) -> Iterator[Any]:
        seen.extend(parts)
        return (work(part) for part in parts)

    def work(part: slice) -> int:
        return part.stop - part.start

    expected = [(slice(0, 4), 4), (slice(4, 8), 4), (slice(8, 10), 2)]
    with pytest.raises(ZeroDivisionError), pieces_done_by(elsewhere):
        assert list(piece_by_piece(work, 10, 4)) == expected
        assert seen == [part for part, _ in expected]
        filled = np.zeros(10)  # what writes to arrays of this process stays in it
        in_parts(lambda part: filled.__setitem__(part, 1.0), 10, 4)
        assert filled.all() and len(seen) == 3
        raise ZeroDivisionError
    assert list(piece_by_piece(work, 10, 4)) == expected and len(seen) == 3


@pytest.mark.usefixtures("three_threads")
def test_results_that_are_not_taken_hold_tasks_back() -> None:
    ran: list[int] = []

    def work(part: slice) -> int:
        ran.append(part.start)
        return part.start

    found = piece_by_piece(work, 50, 2)
    assert next(found) == (slice(0, 2), 0)
    assert len(ran) <= 4  # one for each thread, and one
    assert [start for _, start in found] == list(range(2, 50, 2))
    assert sorted(ran) == list(range(0, 50, 2))


def test_an_interrupt_at_any_line_leaves_no_limit_and_no_thread() -> None:
    def limited() -> None:
        with one_thread():
            pass

    before, torch_before, alive = blas(), torch.get_num_threads(), threading.active_count()
    files = ("interrupts.py", "keyfilters/threads.py", "concurrent/futures/thread.py",
             "threading.py", "contextlib.py")  # fmt: skip
    for _ in interrupted_at_every_line(limited, files):
        assert inside() == 0
        assert blas() == before
        assert torch.get_num_threads() == torch_before
        assert threading.active_count() == alive


@pytest.mark.usefixtures("three_threads")
def test_an_interrupt_while_tasks_are_started_ends_them_all() -> None:
    def several() -> None:
        assert list(side_by_side([partial(int, x) for x in "1234"])) == [1, 2, 3, 4]

    alive = threading.active_count()
    for _ in interrupted_at_every_line(several, ("keyfilters/threads.py", "thread.py")):
        assert inside() == 0
        assert threads_left(alive) == alive

"""An executor for tests: this process, one run after another, without the start of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Self

from keyfilters.experiments.executors import Task, perform


class InProcess:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, runs: int) -> float:
        return 1

    def submit(self, task: Task) -> Future[str | None]:
        future: Future[str | None] = Future()
        future.set_result(perform(task))
        return future

    def map(self, work: Callable[[slice], Any], parts: Sequence[slice]) -> Iterator[Any]:
        return map(work, parts)

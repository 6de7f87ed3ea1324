"""Timing several arms in turn, so that all meet the same noise of the machine, and their ratios."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEWEST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Arm:
    """One way to do a work.

    Attributes:
        name: what stands in the table.
        run: does the work; a number that it returns is how well it did it.
        items: on how much it works, as a multiple of the unit of the comparison.
        tells_seconds: whether the number that it returns is the seconds that count.
    """

    name: str
    run: Callable[[], object]
    items: float = 1.0
    tells_seconds: bool = False


@dataclass(frozen=True)
class Comparison:
    """Our way beside one or several others.

    Attributes:
        subject: which part of the package.
        work: what is done.
        unit: of what the seconds are given, such as ``"filter"``.
        ours: our way.
        rivals: the other ways.
        limits: the most that our time may be of a rival's, by its name.
        most: the most seconds that ours may take an item; None for no such limit.
        quality: what the number that `Arm.run` returns is.
        rounds: how often every arm runs, after a warm-up.
        seconds: no round starts after so long, once each arm ran three times.
        warm_up: whether every arm runs once before.
    """

    subject: str
    work: str
    unit: str
    ours: Arm
    rivals: tuple[Arm, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    most: float | None = None
    quality: str = ""
    rounds: int = 7
    seconds: float = 25.0
    warm_up: bool = True

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Our way and the others."""
        return (self.ours, *self.rivals)


@dataclass(frozen=True)
class Clocks:
    """What tells the time: seconds, and processor seconds of this process and its children."""

    wall: Callable[[], float] = time.perf_counter
    processor: Callable[[], float] = lambda: time.process_time() + _of_children()


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Times:
    """Seconds of every round, for each arm by its name, per item.

    Attributes:
        wall: seconds.
        processor: processor seconds.
        quality: the last number that the arm returned, None where it returned none.
    """

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]
    quality: dict[str, float | None]


def interleave(comparison: Comparison, clocks: Clocks | None = None) -> Times:
    """Run all arms in turn, each round in another order, after one warm-up of each."""
    clocks = clocks or Clocks()
    arms, shuffle = list(comparison.arms), random.Random(0).shuffle
    times = Times({a.name: [] for a in arms}, {a.name: [] for a in arms}, {})
    for arm in arms if comparison.warm_up else []:
        arm.run()
    began = clocks.wall()
    for done in range(comparison.rounds):
        if done >= FEWEST and clocks.wall() - began > comparison.seconds:
            break
        shuffle(arms)
        for arm in arms:
            wall, processor = clocks.wall(), clocks.processor()
            value = arm.run()
            used, seconds = clocks.processor() - processor, clocks.wall() - wall
            number = float(value) if isinstance(value, (int, float)) else None
            if arm.tells_seconds and number is not None:
                seconds, number = number, None
            times.processor[arm.name].append(used / arm.items)
            times.wall[arm.name].append(seconds / arm.items)
            times.quality[arm.name] = number
    return times


def ratios(ours: Sequence[float], rival: Sequence[float]) -> list[float]:
    """Ratio of every round: how many times as long as the rival we took."""
    return [a / b if b else float("nan") for a, b in zip(ours, rival, strict=True)]


def summary(comparison: Comparison, times: Times) -> list[dict[str, Any]]:
    """One row a rival: medians, the ratio with its middle half, the limit and whether it is met."""
    rows = []
    ours = comparison.ours.name
    for rival in comparison.rivals:
        by_round = ratios(times.wall[ours], times.wall[rival.name])
        low, middle, high = np.quantile(by_round, [0.25, 0.5, 0.75])
        processor = ratios(times.processor[ours], times.processor[rival.name])
        limit, seconds = comparison.limits.get(rival.name), float(np.median(times.wall[ours]))
        within = [middle <= limit] if limit is not None else []
        within += [seconds <= comparison.most] if comparison.most is not None else []
        rows.append(
            {
                "subject": comparison.subject,
                "work": comparison.work,
                "ours": ours,
                "beside": rival.name,
                "unit": comparison.unit,
                "seconds": seconds,
                "seconds beside": float(np.median(times.wall[rival.name])),
                "ratio": float(middle),
                "ratio, low": float(low),
                "ratio, high": float(high),
                "ratio, processor": float(np.median(processor)),
                "rounds": len(by_round),
                "limit": limit,
                "limit, s": comparison.most,
                "met": bool(all(within)) if within else None,
                "quality": comparison.quality,
                "quality ours": times.quality[ours],
                "quality beside": times.quality[rival.name],
            }
        )
    return rows

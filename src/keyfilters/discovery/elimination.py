"""Which of many candidates to keep: greedy elimination, selection and exchange.

Every filter is served by the one candidate that gains most for it. A criterion is a table of gains:
``(n, N)``, what each of N candidates explains of each of n filters. The value of a set of
candidates is the sum over the filters of the largest gain in the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError

__all__ = ["Elimination", "eliminate", "exchange", "select", "two_best"]

Gains = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Elimination:
    """Candidates in the order in which they were dropped.

    Attributes:
        order: ``(N,)`` the first dropped first; the last one is never dropped.
        values: ``(N,)`` value of the set before each drop: of N candidates, N − 1, …, 1.
    """

    order: NDArray[np.int64]
    values: NDArray[np.float64]

    def survivors(self, count: int) -> NDArray[np.int64]:
        """Return the last `count` candidates, the one dropped last first."""
        return self.order[::-1][:count]


def eliminate(gains: Gains) -> Elimination:
    """Drop, one after another, the candidate whose loss costs least (babaiee2025quest).

    Only the filters that a dropped candidate served, or would have served next, are looked at
    again, so all N drops together cost about as much as a few passes over the table.

    Args:
        gains: ``(n, N)``, not negative.

    Returns:
        The order of the drops and the values. Of two candidates that cost the same the earlier one
        is dropped.

    >>> eliminate(np.array([[9.0, 8.0, 0.0], [0.0, 0.0, 5.0]])).order.tolist()
    [1, 2, 0]
    """
    gains = _checked(gains)
    count = gains.shape[1]
    alive = np.ones(count, dtype=bool)
    rows = np.arange(len(gains))
    best, best_gain, second, second_gain = two_best(gains, np.arange(count))
    order, values = [], []
    for _ in range(count - 1):
        values.append(float(best_gain.sum(dtype=np.float64)))
        cost = np.bincount(best, (best_gain - second_gain).astype(np.float64), count)
        dropped = int(np.where(alive, cost, np.inf).argmin())
        order.append(dropped)
        alive[dropped] = False
        served = rows[(best == dropped) | (second == dropped)]
        if len(served):
            again = two_best(gains[served], np.flatnonzero(alive))
            best[served], best_gain[served], second[served], second_gain[served] = again
    order.append(int(np.flatnonzero(alive)[0]))
    values.append(float(best_gain.sum(dtype=np.float64)))
    return Elimination(np.array(order), np.array(values))


def select(gains: Gains, count: int) -> NDArray[np.int64]:
    """Choose, one after another, the candidate that adds most.

    >>> select(np.array([[9.0, 8.0, 0.0], [0.0, 0.0, 5.0]]), 2).tolist()
    [0, 2]
    """
    gains = _checked(gains)
    _check_count(gains, count)
    served = np.zeros(len(gains), dtype=gains.dtype)
    chosen: list[int] = []
    for _ in range(count):
        value = np.maximum(gains, served[:, None]).sum(0, dtype=np.float64)
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        served = np.maximum(served, gains[:, chosen[-1]])
    return np.array(chosen)


def exchange(gains: Gains, chosen: NDArray[np.integer], *, rounds: int = 100) -> NDArray[np.int64]:
    """Swap a chosen candidate for another one as long as that adds value, the best swap first.

    Args:
        gains: ``(n, N)``.
        chosen: ``(K,)`` different candidates.
        rounds: swaps at most.

    Returns:
        ``(K,)`` candidates whose value is at least that of `chosen`.
    """
    gains = _checked(gains)
    kept = np.array(chosen, dtype=np.int64)
    _check_count(gains, len(kept))
    value = gains[:, kept].max(1).sum(dtype=np.float64)
    for _ in range(rounds):
        best = (value * (1 + 1e-9), -1, -1)
        position, gain, _, second_gain = two_best(gains, kept)
        for i, candidate in enumerate(kept):
            without = np.where(position == candidate, second_gain, gain)
            values = np.maximum(gains, without[:, None]).sum(0, dtype=np.float64)
            values[kept] = -np.inf
            c = int(values.argmax())
            best = max(best, (float(values[c]), i, c), key=lambda swap: swap[0])
        if best[1] < 0:
            break
        value, i, c = best
        kept[i] = c
    return kept


def two_best(
    gains: Gains, among: NDArray[np.integer]
) -> tuple[NDArray[np.int64], Gains, NDArray[np.int64], Gains]:
    """Best and second best of some candidates for every filter, and their gains.

    Where there is only one candidate, the second is itself, with gain 0.
    """
    part = gains[:, among]
    rows = np.arange(len(part))
    best = part.argmax(1)
    top = part[rows, best]
    if len(among) == 1:
        return among[best], top, among[best], np.zeros_like(top)
    part[rows, best] = -np.inf
    second = part.argmax(1)
    return among[best], top, among[second], part[rows, second]


def _checked(gains: Gains) -> Gains:
    gains = np.asarray(gains)
    if gains.ndim != 2 or 0 in gains.shape:
        raise KeyFiltersError(f"expected gains of shape (n, N), got {gains.shape}")
    if not (np.isfinite(gains).all() and (gains >= 0).all()):
        raise KeyFiltersError("gains must be finite and not negative")
    return gains


def _check_count(gains: Gains, count: int) -> None:
    if not 1 <= count <= gains.shape[1]:
        raise KeyFiltersError(f"cannot choose {count} of {gains.shape[1]} candidates")

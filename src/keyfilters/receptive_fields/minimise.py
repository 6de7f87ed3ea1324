"""A global minimum over a small box, for distances with kinks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter
from scipy.optimize import minimize
from torch import Tensor

__all__ = ["Loss", "minimise"]

Loss = Callable[[Tensor], Tensor]  # (m, d) parameters -> (m,) distances


def minimise(loss: Loss, ranges: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Global minimum over a box: a grid, then a pattern search from its four deepest valleys.

    The pattern, a small grid around the best point so far, moves while its rim is better and
    shrinks otherwise. It needs no gradient, so the kinks of the ℓ1 distance do not hinder it.
    """
    low, high = np.array(ranges, dtype=np.float64).T
    count = 241 if len(ranges) == 1 else 61
    lines = [np.linspace(a, b, count) for a, b in ranges]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    values = _evaluate(loss, points.reshape(-1, len(ranges))).reshape(points.shape[:-1])
    valleys = np.flatnonzero(values <= minimum_filter(values, size=3, mode="nearest"))
    starts = valleys[np.argsort(values.ravel()[valleys], kind="stable")[:4]]
    pattern = np.array(list(product(np.linspace(-1, 1, 9), repeat=len(ranges))))
    found = []
    for start in points.reshape(-1, len(ranges))[starts]:
        best, least, width = start, np.inf, (high - low) / (count - 1)
        for _ in range(200):
            candidates = np.clip(best + width * pattern, low, high)
            values = _evaluate(loss, candidates)
            step = np.abs(candidates[values.argmin()] - best) / width
            if values.min() >= least or step.max() < 0.8:
                width = width * 0.4
            if values.min() < least:
                best, least = candidates[values.argmin()], values.min()
            if width.max() < 1e-11:
                break
        found.append((float(least), *best))
    least, *point = min(found)
    best = np.array(point)
    for _ in range(2 if len(ranges) > 1 else 0):
        # A kink that runs aslant can hold the pattern up; a simplex stretches along it.
        polished = minimize(
            lambda point: float(_evaluate(loss, point[None])[0]), best, method="Nelder-Mead",
            bounds=ranges, options={"xatol": 1e-11, "fatol": 1e-15, "maxfev": 600},
        )  # fmt: skip
        if polished.fun >= least:
            break
        best, least = polished.x, polished.fun
    return _at_the_end(loss, _smallest(loss, best, low), low, high)


def _smallest(
    loss: Loss, best: NDArray[np.float64], low: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the smallest parameters that are as good, since an ℓ1 distance can be level there.

    Without this, rounding would decide where on the level part the search ends.
    """
    best = best.copy()
    bound = float(_evaluate(loss, best[None])[0]) * (1 + 1e-12) + 1e-15
    for i in range(len(best)):
        moves = np.append(0, np.geomspace(1e-9, max(best[i] - low[i], 1e-9), 200))
        for _ in range(3):  # each time between the last good move and the first bad one
            points = np.tile(best, (len(moves), 1))
            points[:, i] = np.maximum(best[i] - moves, low[i])
            bad = _evaluate(loss, points) > bound
            first = int(bad.argmax()) if bad.any() else len(moves)
            good = moves[max(first - 1, 0)]
            if not 0 < first < len(moves):
                break
            moves = np.linspace(good, moves[first], 64)
        best[i] = max(best[i] - good, low[i])
    return best


def _at_the_end(
    loss: Loss, best: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move a parameter that is next to an end of its range to the end, if nothing gets worse."""
    for i, end in product(range(len(best)), (low, high)):
        moved = best.copy()
        moved[i] = end[i]
        here, there = _evaluate(loss, np.stack([best, moved]))
        if abs(best[i] - end[i]) < 1e-3 and there <= here * (1 + 1e-13):
            best = moved
    return best


def _evaluate(loss: Loss, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return loss(torch.from_numpy(np.ascontiguousarray(points))).numpy()

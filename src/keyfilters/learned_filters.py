"""Learning a few filters from many: lines through the origin, and k-means on the sphere."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.nulls import NULLS, null_units
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.sizes import Window, extent
from keyfilters.threads import one_thread

__all__ = ["METHODS", "RESTARTS", "kmeans_prototypes", "learn_filters", "learn_from_bank"]

METHODS = ("lines", "kmeans")
ROUNDS = 100
RESTARTS = 4


@one_thread()
def learn_filters(
    filters: NDArray[np.floating],
    count: int,
    method: str = "lines",
    seed: int = 0,
    restarts: int = RESTARTS,
) -> NDArray[np.float32]:
    """Learn a few filters near many; see `keyfilters.clusters.keys.learn_keys`.

    Args:
        filters: ``(n, k_y, k_x)``, finite and not constant.
        count: number of filters to learn, at most n.
        method: ``"lines"`` or ``"kmeans"``.
        seed: of the starts.
        restarts: number of starts of lines, of which the best is kept.

    Returns:
        ``(at most count, k_y, k_x)``, centred and of unit norm.
    """
    unit = centred_unit(filters)
    if method == "kmeans":
        found = kmeans_prototypes(unit, count, seed)
    else:
        tries = [_principal_lines(unit, count, seed, restart) for restart in range(restarts)]
        found = max(tries, key=lambda x: float((np.abs(unit @ x.T).max(1) ** 2).mean()))
    return found.reshape(-1, *filters.shape[1:])


def learn_from_bank(
    bank: FilterBank | None, window: Window, count: int, method: str, seed: int
) -> tuple[NDArray[np.float32], str]:
    """Learn keys from the filters of one kernel size, or draw null filters of them, and say how.

    Raises:
        KeyFiltersError: there is no bank, or it has no such filters.
    """
    if bank is None:
        raise KeyFiltersError(
            f"{method}:{count} learns keys from filters, and none were given; name other keys, "
            "or in Python pass bank="
        )
    filters = bank.stack(window)[0]
    filters = filters[why_unusable(filters) == ""]
    if not len(filters):
        raise KeyFiltersError(f"there are no {extent(window)} filters to learn keys from")
    if method in NULLS:
        drawn = null_units(centred_unit(filters), window, method, seed, count)
        told = f"{count} {NULLS[method]} as {len(filters):,} others, seed {seed}"
        return drawn.reshape(-1, *window), told
    count = min(count, len(filters))
    told = f"{count} keys by {method} from {len(filters):,} filters, seed {seed}"
    return learn_filters(filters, count, method, seed), told


@one_thread()
def kmeans_prototypes(
    unit: NDArray[np.float32], count: int, seed: int, *, restarts: int = 1
) -> NDArray[np.float32]:
    """Return the centres of k-means on the sphere of centred unit filters.

    Args:
        unit: ``(n, taps)`` centred, of unit norm.
        count: number of prototypes, at most n; repeated filters make some of them equal.
        seed: of the random generator.
        restarts: the best of so many runs is kept.

    Returns:
        ``(count, taps)`` centred, of unit norm.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state

    count = min(count, len(unit))
    generator = check_random_state(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # repeated filters
        starts = [unit[_far_apart(unit, count, generator)] for _ in range(restarts)]
        runs = [KMeans(count, init=start, n_init=1).fit(unit) for start in starts]
    centres = min(runs, key=lambda run: float(run.inertia_)).cluster_centers_
    shown = np.linalg.norm(centres, axis=1) > 1e-6  # opposite filters can average out
    return centred_unit(centres[shown])


def _far_apart(
    unit: NDArray[np.float32], count: int, generator: np.random.RandomState
) -> NDArray[np.int64]:
    """Draw the filters from which k-means starts, by greedy k-means++, as scikit-learn does.

    Draw for draw as its newer versions; there, converting the filters anew for every centre takes
    longer than k-means itself.
    """
    exact = (unit - unit.mean(axis=0)).astype(np.float64)
    products, power = np.ascontiguousarray(-2 * exact.T), (exact**2).sum(axis=1)
    weights = np.ones((len(unit), 1), np.float32)

    def distances(some: NDArray[np.int64]) -> NDArray[np.float32]:
        squares = exact[some] @ products
        squares += power[some, None]
        squares += power
        found = squares.astype(np.float32)
        return np.maximum(found, 0, out=found)

    chosen = generator.choice(len(unit), size=1, p=weights[:, 0] / len(unit))
    nearest = distances(chosen)
    total = nearest @ weights
    trials = 2 + int(math.log(count))
    while len(chosen) < count:
        drawn = generator.uniform(size=trials) * total[0]
        tried = np.searchsorted(np.cumsum(nearest), drawn).clip(max=len(unit) - 1)
        near = distances(tried)
        np.minimum(nearest, near, out=near)
        totals = near @ weights
        best = [int(totals.argmin())]
        chosen, nearest, total = np.append(chosen, tried[best]), near[best], totals[best]
    return chosen


def _principal_lines(
    unit: NDArray[np.float32], count: int, seed: int, restart: int
) -> NDArray[np.float32]:
    generator = np.random.default_rng([seed, restart])
    lines = unit[_spread_out(unit, count, generator)]
    index = np.full(len(unit), -1)
    for _ in range(ROUNDS):
        cosine = np.abs(unit @ lines.T)
        nearest = cosine.argmax(1)
        if np.array_equal(nearest, index):
            break
        index = nearest
        worst = np.argsort(cosine.max(1))
        for k in range(count):
            members = unit[index == k].astype(np.float64)
            if len(members):
                lines[k] = np.linalg.eigh(members.T @ members)[1][:, -1]
            else:  # a line that nobody joins starts anew at a filter that is ill served
                lines[k] = unit[worst[k]]
    return lines


def _spread_out(
    unit: NDArray[np.float32], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw filters one after another, with probability the share that those drawn leave over."""
    chosen = [int(generator.integers(len(unit)))]
    left = np.ones(len(unit))
    while len(chosen) < count:
        left = np.minimum(left, 1 - (unit @ unit[chosen[-1]]) ** 2).clip(0)
        total = left.sum()
        chance = left / total if total > 0 else None
        chosen.append(int(generator.choice(len(unit), p=chance)))
    return np.array(chosen)

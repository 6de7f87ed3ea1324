"""What needs every filter of a bank: read grain by grain, on all cores, and kept compactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters.key_use import strongest_key
from keyfilters.clusters.patterns import CodeUse
from keyfilters.clusters.square_or_shifted import look_square
from keyfilters.filter_rows import FilterRows
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.threads import piece_by_piece, undivided

__all__ = [
    "FLAWS",
    "Description",
    "describe",
    "flaw_numbers",
    "flaws_of",
    "grain_by_grain",
]

Result = TypeVar("Result")

FLAWS = ("", "non-finite", "dead", "constant")
GRAIN = (1024, 16384)  # filters that are computed together, at least and at most
GRAINS = 1  # of a task; results do not depend on it


@dataclass(frozen=True, eq=False)
class Description:
    """What was found for the n usable filters of one kernel size.

    Attributes:
        use: their places on the code.
        keys: for every key set the best key ``(n,)`` and the cosine with it ``(n,)``.
        looks: see `look_square`.
    """

    use: CodeUse
    keys: dict[str, tuple[NDArray[np.int16], NDArray[np.float32]]]
    looks: NDArray[np.uint8]


def flaws_of(bank: FilterBank) -> NDArray[np.uint8]:
    """Return for every filter of a bank, in order of the layers, the number of its flaw in `FLAWS`.

    See `keyfilters.scalespace.why_unusable`.
    """
    sizes = np.array([layer.size for layer in bank.layers]).reshape(-1, 2)
    counts = [len(layer.weight) for layer in bank.layers]
    found = np.zeros(sum(counts), np.uint8)
    for size in bank.sizes:
        rows = np.flatnonzero(np.repeat((sizes == size).all(1), counts))
        filters = FilterRows(bank, rows)

        def work(part: slice, filters: FilterRows = filters) -> NDArray[np.uint8]:
            return flaw_numbers(filters[part])

        for part, number in grain_by_grain(work, len(rows)):
            found[rows[part]] = number
    return found


def flaw_numbers(filters: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return for filters ``(n, k_y, k_x)`` the numbers of their flaws in `FLAWS`."""
    flaw = why_unusable(filters)
    numbers = np.zeros(len(flaw), np.uint8)
    for i, name in enumerate(FLAWS):
        numbers[flaw == name] = i
    return numbers


def describe(
    filters: FilterRows,
    size: tuple[int, int],
    decoded: NDArray[np.float32],
    keys: Mapping[str, KeySet],
    threshold: float,
) -> Description:
    """Place filters on a code, give each its key, and ask whether it looks square.

    Args:
        filters: n usable filters.
        size: window ``(k_y, k_x)``.
        decoded: ``(G, taps)`` filters that the code decodes to.
        keys: key sets by name.
        threshold: dissimilarity below which two filters count as alike.
    """
    count = len(filters)
    whole = Description(
        CodeUse(np.empty(count, np.int16), np.empty(count, np.float32), np.zeros(decoded.shape)),
        {name: (np.empty(count, np.int16), np.empty(count, np.float32)) for name in keys},
        np.empty(count, np.uint8),
    )
    work = partial(_describe, filters, size, decoded, keys, threshold)
    for rows, part in grain_by_grain(work, count):
        whole.use.step[rows], whole.use.dissimilarity[rows] = part.use.step, part.use.dissimilarity
        total = whole.use.total
        total += part.use.total  # in order, so that it rounds in one way
        for name, columns in part.keys.items():
            whole.keys[name][0][rows], whole.keys[name][1][rows] = columns
        whole.looks[rows] = part.looks
    return whole


def grain_by_grain(work: Callable[[slice], Result], count: int) -> Iterator[tuple[slice, Result]]:
    """Yield the slice of every grain of so many filters and what a work returns for it, in order.

    Grains depend on nothing but the number of filters, so that products and sums within them, and
    sums over them, round in one way. Several are worked on at a time, each on one thread.

    Args:
        work: called with the slice of every grain.
        count: number of filters.
    """
    least, most = GRAIN
    size = min(most, -(-count // (4 * least)) * least)

    def several(rows: slice) -> list[tuple[slice, Result]]:
        starts = range(rows.start, rows.stop, size)
        grains = [slice(start, min(start + size, rows.stop)) for start in starts]
        with undivided():
            return [(grain, work(grain)) for grain in grains]

    for _, found in piece_by_piece(several, count, GRAINS * size):
        yield from found


def _describe(
    filters: FilterRows,
    size: tuple[int, int],
    decoded: NDArray[np.float32],
    keys: Mapping[str, KeySet],
    threshold: float,
    rows: slice,
) -> Description:
    unit = centred_unit(filters[rows])
    best = {name: strongest_key(unit, known) for name, known in keys.items()}
    use = CodeUse.of(decoded, unit, threshold)
    return Description(use, best, look_square(unit, size, threshold))

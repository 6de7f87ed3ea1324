"""What needs every filter of a bank: read grain by grain, on all cores, and kept compactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters.key_use import strongest_key
from keyfilters.clusters.patterns import CodeUse
from keyfilters.clusters.square_or_shifted import look_square
from keyfilters.columns import GRAIN
from keyfilters.filter_rows import FilterRows
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.threads import piece_by_piece, workers

__all__ = [
    "FLAWS",
    "Description",
    "chunk_of",
    "describe",
    "flaw_numbers",
    "flaws_of",
    "grains_of",
]

FLAWS = ("", "non-finite", "dead", "constant")
CHUNK = 16 * GRAIN  # filters of a task, at most; results do not depend on it


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

        for part, number in piece_by_piece(work, len(rows), chunk_of(len(rows))):
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
    for chunk, grains in piece_by_piece(work, count, chunk_of(count)):
        for start, part in zip(range(chunk.start, chunk.stop, GRAIN), grains, strict=True):
            rows = slice(start, min(start + GRAIN, chunk.stop))
            whole.use.step[rows] = part.use.step
            whole.use.dissimilarity[rows] = part.use.dissimilarity
            total = whole.use.total
            total += part.use.total  # grain by grain, so that it rounds in one way
            for name, columns in part.keys.items():
                whole.keys[name][0][rows], whole.keys[name][1][rows] = columns
            whole.looks[rows] = part.looks
    return whole


def chunk_of(count: int) -> int:
    """Return how many of so many filters a task takes: whole grains, and some for every thread."""
    even = -(-count // (workers() * GRAIN)) * GRAIN
    return max(GRAIN, min(CHUNK, even))


def grains_of(count: int) -> list[slice]:
    """Divide so many filters in grains."""
    return [slice(start, min(start + GRAIN, count)) for start in range(0, count, GRAIN)]


def _describe(
    filters: FilterRows,
    size: tuple[int, int],
    decoded: NDArray[np.float32],
    keys: Mapping[str, KeySet],
    threshold: float,
    rows: slice,
) -> list[Description]:
    """Describe one chunk, grain by grain."""
    chunk = filters[rows]
    found = []
    for grain in grains_of(len(chunk)):
        unit = centred_unit(chunk[grain])
        best = {name: strongest_key(unit, known) for name, known in keys.items()}
        use = CodeUse.of(decoded, unit, threshold)
        found.append(Description(use, best, look_square(unit, size, threshold)))
    return found

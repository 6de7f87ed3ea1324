"""From a 1-D code to patterns: decoded filters that look alike are one pattern with one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.naming import UNNAMED, name_filters
from keyfilters.clusters.prototypes import nearest_prototype
from keyfilters.scalespace import centred_unit

__all__ = ["CodeUse", "Patterns", "find_patterns", "group_codes", "read_patterns"]


@dataclass(frozen=True, eq=False)
class Patterns:
    """The patterns of one kernel size.

    Attributes:
        table: one row a pattern, in order of the code: pattern (its label), name (without the
            number that tells variants apart), the columns of `name_filters`, code (mean), filters
            (assigned), share (classified, of all filters).
        prototypes: ``(P, taps)`` mean of each pattern's classified filters, centred, of unit norm.
        index: ``(n,)`` pattern of every filter.
        code: ``(n,)`` code of every filter in (0, 1).
        dissimilarity: ``(n,)`` of every filter to the filter its code decodes to.
    """

    table: pd.DataFrame
    prototypes: NDArray[np.float32]
    index: NDArray[np.int32]
    code: NDArray[np.float32]
    dissimilarity: NDArray[np.float32]


def find_patterns(
    decoded: NDArray[np.float32],
    unit: NDArray[np.float32],
    size: tuple[int, int],
    threshold: float,
) -> Patterns:
    """Read the patterns off the code of a fitted 1-D autoencoder.

    The decoded filters that are in use are joined by average linkage up to `threshold`, so that a
    pattern to which the code comes back is one pattern.

    Args:
        decoded: ``(G, taps)`` filters that a 1-D code decodes to, in order of the code.
        unit: ``(n, taps)`` centred unit filters.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which two filters count as alike.
    """
    use = CodeUse.of(decoded, unit, threshold)
    return read_patterns(decoded, use, unit.__getitem__, size, threshold)


@dataclass(frozen=True, eq=False)
class CodeUse:
    """How filters use a 1-D code.

    Attributes:
        step: ``(n,)`` place of each filter on the code.
        dissimilarity: ``(n,)`` of each to the filter decoded there.
        total: ``(G, taps)`` float64, sum of the classified filters at every step.
    """

    step: NDArray[np.integer[Any]]
    dissimilarity: NDArray[np.float32]
    total: NDArray[np.float64]

    @classmethod
    def of(
        cls, decoded: NDArray[np.float32], unit: NDArray[np.float32], threshold: float
    ) -> CodeUse:
        """Place ``(n, taps)`` centred unit filters on a code that decodes to ``(G, taps)``."""
        from scipy.sparse import csr_array

        step, dissimilarity = nearest_prototype(unit, decoded)
        good = np.flatnonzero(dissimilarity < threshold)
        shape = (len(decoded), len(unit))
        at_step = csr_array((np.ones(len(good)), (step[good], good)), shape=shape)
        return cls(step, dissimilarity, at_step @ unit.astype(np.float64))


def read_patterns(
    decoded: NDArray[np.float32],
    use: CodeUse,
    unit: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    size: tuple[int, int],
    threshold: float,
) -> Patterns:
    """Read the patterns off a code, see `find_patterns`, once filters are placed on it.

    Args:
        decoded: ``(G, taps)`` filters that the code decodes to.
        use: where the filters are on it.
        unit: returns centred unit filters by their places.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which two filters count as alike.
    """
    steps = len(decoded)
    classified = use.dissimilarity < threshold
    usage = np.bincount(use.step, minlength=steps)
    good = np.bincount(use.step[classified], minlength=steps)
    label = _join(decoded, usage, threshold)
    code_of_step = ((np.arange(steps) + 0.5) / steps).astype(np.float32)
    used = np.unique(label[usage > 0])
    mean_code = np.array([_median(code_of_step[label == i], usage[label == i]) for i in used])
    used = used[np.argsort(mean_code)]
    pattern = np.full(steps, -1, np.int32)
    for number, i in enumerate(used):
        pattern[label == i] = number
    index = pattern[use.step]
    prototypes = []
    for number in range(len(used)):
        own = pattern == number
        if good[own].any():
            mean = use.total[own].sum(0, keepdims=True) / good[own].sum()
        else:  # the most typical one
            least = use.dissimilarity[index == number].min()
            typical = np.flatnonzero((index == number) & (use.dissimilarity == least))
            mean = unit(typical).mean(0, keepdims=True, dtype=np.float64)
        prototypes.append(centred_unit(mean)[0])
    named = name_filters(np.stack(prototypes), size, threshold)
    filters = np.bincount(index, minlength=len(used))
    share = np.bincount(pattern[pattern >= 0], good[pattern >= 0], len(used)) / len(index)
    table = named.assign(code=np.sort(mean_code), filters=filters, share=share)
    table.insert(0, "pattern", _number_variants(table))
    return Patterns(table, np.stack(prototypes), index, code_of_step[use.step], use.dissimilarity)


def _median(values: NDArray[np.float32], counts: NDArray[np.int64]) -> np.float32:
    """Return the median of ascending values that occur so often."""
    ends = counts.cumsum()
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return values[np.searchsorted(ends, middle, side="right")].mean()


def group_codes(
    decoded: NDArray[np.float32], unit: NDArray[np.float32], threshold: float
) -> NDArray[np.int64]:
    """Return the pattern of every filter as a number, ``(n,)``, without names.

    Args:
        decoded: ``(G, taps)`` filters that a 1-D code decodes to.
        unit: ``(n, taps)`` centred unit filters.
        threshold: dissimilarity below which two filters count as alike.
    """
    index, _ = nearest_prototype(unit, decoded)
    return _join(decoded, np.bincount(index, minlength=len(decoded)), threshold)[index]


def _join(
    decoded: NDArray[np.float32], usage: NDArray[np.int64], threshold: float
) -> NDArray[np.int64]:
    """Label every code with its pattern; codes that no filter uses get -1."""
    from scipy.cluster.hierarchy import fcluster, linkage

    label = np.full(len(decoded), -1)
    used = np.flatnonzero(usage)
    if len(used) == 1:
        label[used] = 0
        return label
    tree = linkage(decoded[used].astype(np.float64), "average", metric="cosine")
    label[used] = fcluster(tree, threshold, "distance") - 1
    return label


def _number_variants(table: pd.DataFrame) -> list[str]:
    """Make labels unique: the variants of a name are numbered, the most frequent first."""
    labels = table["name"].tolist()
    for name, rows in table.groupby("name"):
        if len(rows) > 1:
            ranked = rows.sort_values("share", ascending=False, kind="stable").index
            for number, row in enumerate(ranked, start=1):
                labels[row] = f"{name} {number}" if name == UNNAMED or number > 1 else str(name)
    return labels

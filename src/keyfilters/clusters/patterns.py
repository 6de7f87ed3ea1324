"""From a 1-D code to patterns: decoded filters that look alike are one pattern with one name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.naming import UNNAMED, name_filters
from keyfilters.clusters.prototypes import nearest_prototype
from keyfilters.scalespace import centred_unit

__all__ = ["Patterns", "find_patterns", "group_codes"]


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
    index: NDArray[np.int64]
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
    code_index, dissimilarity = nearest_prototype(unit, decoded)
    classified = dissimilarity < threshold
    label = _join(decoded, np.bincount(code_index, minlength=len(decoded)), threshold)[code_index]
    code = ((code_index + 0.5) / len(decoded)).astype(np.float32)

    used = np.unique(label)
    mean_code = np.array([np.median(code[label == i]) for i in used])
    used = used[np.argsort(mean_code)]
    index = np.argsort(used)[np.searchsorted(np.sort(used), label)]
    prototypes = np.stack(
        [_prototype(unit, index == i, classified, dissimilarity) for i in range(len(used))]
    )
    named = name_filters(prototypes, size, threshold)
    filters = np.bincount(index, minlength=len(used))
    share = np.bincount(index[classified], minlength=len(used)) / len(unit)
    table = named.assign(code=np.sort(mean_code), filters=filters, share=share)
    table.insert(0, "pattern", _number_variants(table))
    return Patterns(table, prototypes, index, code, dissimilarity)


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


def _prototype(
    unit: NDArray[np.float32],
    member: NDArray[np.bool_],
    classified: NDArray[np.bool_],
    dissimilarity: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Mean of a pattern's classified filters, or the most typical one if there are none."""
    chosen = member & classified
    if not chosen.any():
        chosen = member & (dissimilarity == dissimilarity[member].min())
    return centred_unit(unit[chosen].mean(0, keepdims=True, dtype=np.float64))[0]


def _number_variants(table: pd.DataFrame) -> list[str]:
    """Make labels unique: the variants of a name are numbered, the most frequent first."""
    labels = table["name"].tolist()
    for name, rows in table.groupby("name"):
        if len(rows) > 1:
            ranked = rows.sort_values("share", ascending=False, kind="stable").index
            for number, row in enumerate(ranked, start=1):
                labels[row] = f"{name} {number}" if name == UNNAMED or number > 1 else str(name)
    return labels

"""Are squares only centres that lie between the taps?

babaiee2024unveiling names on- and off-squares among its patterns. A plateau of 2×2 taps is also
what a centre looks like whose middle lies half a tap off the grid along both axes, as uneven
padding makes it. This module lets the two explanations compete for every filter.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.receptive_fields import FAMILIES, build_dictionary

__all__ = ["square_report"]


def square_report(
    unit: NDArray[np.float32], table: pd.DataFrame, size: tuple[int, int], threshold: float
) -> dict[str, Any]:
    """Count filters that look square, and ask of each which form explains it best.

    A filter looks square if an on-grid square, or a centre moved by half a tap along both axes, is
    its best match among all centres and squares, with a dissimilarity below `threshold`.

    Args:
        unit: ``(n, taps)`` centred unit filters.
        table: ``(n rows)`` with the columns model, layer and stride (NaN where unknown).
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which two filters count as alike.

    Returns:
        ``square_like`` (number), ``off_grid`` (share of them that an off-grid centre explains
        better than an on-grid square), ``direction`` (the most frequent of the four in which those
        are moved), ``one_direction`` (its share, by chance 1/4), ``layers`` (those that hold most,
        with numbers), ``strided`` (share of them, and of all filters, in layers that subsample,
        where strides are known) and ``words``.
    """
    if min(size) < 5:
        words = (
            f"A {size[0]}×{size[1]} window is too small to tell a square on the grid from a centre "
            "off the grid."
        )
        return {"square_like": None, "words": words}
    dictionary = build_dictionary(size)
    names = np.array([FAMILIES[i].name for i in dictionary.family])
    parameters = dictionary.parameters
    isotropic = np.isnan(parameters[:, 1]) | (parameters[:, 0] == parameters[:, 1])
    on_grid = (names == "x:0 y:0") & isotropic | np.isin(names, ["laplacian", "sharpen"])
    moved = np.array([name.startswith("shifted") for name in names])
    corner = np.array([name.startswith("shifted") and name.count("½") == 2 for name in names])
    square = names == "square"
    blob = on_grid | moved | square
    atoms = dictionary.atoms.reshape(len(names), -1)[blob]
    similarity = np.abs(unit @ atoms.T)
    best = similarity.argmax(axis=1)
    close = similarity.max(axis=1) > 1 - threshold
    is_corner, is_square = close & corner[blob][best], close & square[blob][best]
    count = int((is_corner | is_square).sum())
    if count == 0:
        words = "No filter looks like a square."
        return {"square_like": 0, "words": words}
    directions = Counter(name.split()[-1] for name in names[blob][best][is_corner])
    direction, most = directions.most_common(1)[0] if directions else ("", 0)
    found = table[is_corner | is_square]
    layers = found.groupby(["model", "layer"]).size().sort_values(ascending=False)
    off_grid = float(is_corner.sum()) / count
    words = (
        f"{count:,} filters ({count / len(unit):.1%}) look like squares; {off_grid:.0%} of them "
        "are explained better by a centre that lies half a tap off the grid along both axes"
    )
    if directions:
        words += (
            f", and {most / is_corner.sum():.0%} of those are moved in the same direction "
            f"({direction}; by chance it would be about 25%)"
        )
    strided = None
    if table["stride"].notna().all():
        strided = (float((found["stride"] > 1).mean()), float((table["stride"] > 1).mean()))
        words += (
            f". {strided[0]:.0%} of the square-like filters are in layers that subsample, which "
            f"hold {strided[1]:.0%} of all filters of this size"
        )
    words += f". The layers that hold most of them: {_layers_in_words(layers.head(4), count)}."
    return {
        "square_like": count,
        "off_grid": off_grid,
        "direction": direction,
        "one_direction": most / max(1, int(is_corner.sum())),
        "layers": {" / ".join(map(str, key)): int(n) for key, n in layers.head(8).items()},
        "strided": strided,
        "words": words,
    }


def _layers_in_words(layers: pd.Series, count: int) -> str:
    several = layers.index.get_level_values("model").nunique() > 1
    return ", ".join(
        f"{model + ' / ' if several else ''}{name} ({n / count:.0%})"
        for (model, name), n in layers.items()
    )

"""Are squares only centres that lie between the taps?

babaiee2024unveiling names on- and off-squares among its patterns. A plateau of 2×2 taps is also
what a centre looks like whose middle lies half a tap off the grid along both axes, as layers that
subsample need it. This module lets the two explanations compete for every filter.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.prototypes import nearest_prototype
from keyfilters.receptive_fields import FAMILIES, build_dictionary

__all__ = ["nearest_centre", "square_report"]

ON_GRID, SQUARE = "on the grid", "square"


def nearest_centre(
    unit: NDArray[np.float32], size: tuple[int, int]
) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """Compare filters with all centres, on and off the grid, and with squares on the grid.

    Args:
        unit: ``(n, taps)`` centred unit filters.
        size: window ``(k_y, k_x)``.

    Returns:
        The nearest form of every filter, ``(n,)`` strings: ``"on the grid"``, ``"square"``, or how
        the centre is moved, such as ``"−x½+y½"``; and the dissimilarity to it, ``(n,)``.
    """
    dictionary = build_dictionary(size)
    parameters = dictionary.parameters
    isotropic = np.isnan(parameters[:, 1]) | (parameters[:, 0] == parameters[:, 1])
    forms = np.full(len(parameters), "", dtype=object)
    for i, number in enumerate(dictionary.family):
        name = FAMILIES[number].name
        if name.startswith("shifted"):
            forms[i] = name.split()[-1]
        elif name == "square":
            forms[i] = SQUARE
        elif name in ("laplacian", "sharpen") or (name == "x:0 y:0" and isotropic[i]):
            forms[i] = ON_GRID
    chosen = forms != ""
    atoms = dictionary.atoms.reshape(len(forms), -1)[chosen]
    index, dissimilarity = nearest_prototype(unit, atoms, either_sign=True)
    return forms[chosen][index], dissimilarity


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
    form, dissimilarity = nearest_centre(unit, size)
    corner = np.array([name.count("½") == 2 for name in form], dtype=bool)
    square_like = (corner | (form == SQUARE)) & (dissimilarity < threshold)
    count = int(square_like.sum())
    if count == 0:
        return {"square_like": 0, "words": "No filter looks like a square."}
    moved = form[square_like & corner]
    direction, most = Counter(moved).most_common(1)[0] if len(moved) else ("", 0)
    found = table[square_like]
    layers = found.groupby(["model", "layer"]).size().sort_values(ascending=False)
    words = (
        f"{count:,} filters ({count / len(unit):.1%}) look like squares; {len(moved) / count:.0%} "
        "of them are explained better by a centre that lies half a tap off the grid along both axes"
    )
    if direction:
        words += (
            f", and {most / len(moved):.0%} of those are moved in the same direction "
            f"({direction}; by chance it would be about 25%)"
        )
    strided = None
    if table["stride"].notna().all() and (table["stride"] > 1).any():
        strided = (float((found["stride"] > 1).mean()), float((table["stride"] > 1).mean()))
        words += (
            f". {strided[0]:.0%} of the square-like filters are in layers that subsample, which "
            f"hold {strided[1]:.0%} of all filters of this size"
        )
    words += f". The layers that hold most of them: {_layers_in_words(layers.head(4), count)}."
    return {
        "square_like": count,
        "off_grid": len(moved) / count,
        "direction": direction,
        "one_direction": most / max(1, len(moved)),
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

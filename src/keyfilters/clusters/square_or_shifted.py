"""Are squares only centres that lie between the taps?

babaiee2024unveiling names on- and off-squares among its patterns. A plateau of 2×2 taps is also
what a centre looks like whose middle lies half a tap off the grid along both axes, as layers that
subsample need it. This module lets the two explanations compete for every filter.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.prototypes import nearest_prototype
from keyfilters.receptive_fields import FAMILIES, build_dictionary

__all__ = ["look_square", "nearest_centre", "square_report"]

ON_GRID, SQUARE = "on the grid", "square"
# What a filter can look like; centres that are moved along both axes look square too.
SQUARES = np.array(["", SQUARE, "−x½+y½", "−x½−y½", "+x½+y½", "+x½−y½"], dtype=object)


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
    forms, atoms = _centres(size)
    index, dissimilarity = nearest_prototype(unit, atoms, either_sign=True)
    return forms[index], dissimilarity


@lru_cache(maxsize=16)
def _centres(size: tuple[int, int]) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """Return names ``(K,)`` and taps ``(K, taps)`` of all centres, and of squares on the grid."""
    dictionary = build_dictionary(size)
    parameters = dictionary.parameters
    isotropic = np.isnan(parameters[:, 1]) | (parameters[:, 0] == parameters[:, 1])
    forms = np.full(len(parameters), "", dtype=object)
    for i, number in enumerate(dictionary.family):
        form = FAMILIES[number]
        if form.shift is not None and (form.separable is None or isotropic[i]):
            forms[i] = _moved(form.shift)
        elif form.name == "square":
            forms[i] = SQUARE
    chosen = forms != ""
    return forms[chosen], dictionary.atoms.reshape(len(forms), -1)[chosen]


def look_square(
    unit: NDArray[np.float32], size: tuple[int, int], threshold: float
) -> NDArray[np.uint8]:
    """Return for each filter 0, or the number in `SQUARES` of the square that it looks like."""
    if min(size) < 5:
        return np.zeros(len(unit), np.uint8)
    form, dissimilarity = nearest_centre(unit, size)
    number = {name: i for i, name in enumerate(SQUARES)}
    found = np.array([number.get(name, 0) for name in form], np.uint8)
    return np.where(dissimilarity < threshold, found, np.uint8(0))


def square_report(
    looks: NDArray[np.uint8], table: pd.DataFrame, size: tuple[int, int]
) -> dict[str, Any]:
    """Count filters that look square, and ask of each which form explains it best.

    A filter looks square if an on-grid square, or a centre moved by half a tap along both axes, is
    its best match among all centres and squares, with a dissimilarity below `threshold`.

    Args:
        looks: ``(n,)``, see `look_square`.
        table: ``(n rows)`` with the columns model, layer and stride (NaN where unknown).
        size: window ``(k_y, k_x)``.

    Returns:
        ``square_like`` (number), ``off_grid`` (share of them that an off-grid centre explains
        better than an on-grid square), ``direction`` (the most frequent of the four in which those
        are moved), ``one_direction`` (its share, by chance 1/4), ``layers`` (those that hold most,
        with numbers), ``strided`` (share of them, and of all filters, in layers that subsample,
        where strides are known) and ``words``.
    """
    if min(size) < 5:
        window = f"A {size[0]}×{size[1]} window"
        words = f"{window} is too small to tell a square on the grid from a centre off the grid."
        return {"square_like": None, "words": words}
    found, moved = table[looks > 0], SQUARES[looks[looks > 1]]
    if found.empty:
        return {"square_like": 0, "words": "No filter looks like a square."}
    direction, most = Counter(moved).most_common(1)[0] if len(moved) else ("", 0)
    layers = found.groupby(["model", "layer"]).size().sort_values(ascending=False)
    strided = None
    if table["stride"].notna().all() and (table["stride"] > 1).any():
        strided = (float((found["stride"] > 1).mean()), float((table["stride"] > 1).mean()))
    report = {
        "square_like": len(found),
        "off_grid": len(moved) / len(found),
        "direction": direction,
        "one_direction": most / max(1, len(moved)),
        "layers": {" / ".join(map(str, key)): int(n) for key, n in layers.head(8).items()},
        "strided": strided,
    }
    return report | {"words": _in_words(report, len(table), layers)}


def _moved(shift: tuple[float, float]) -> str:
    """How a centre is moved, such as ``"−x½+y½"``."""
    parts = [f"{'+' if s > 0 else '−'}{axis}½" for axis, s in zip("xy", shift, strict=True) if s]
    return "".join(parts) or ON_GRID


def _in_words(report: dict[str, Any], filters: int, layers: pd.Series) -> str:
    count = report["square_like"]
    words = (
        f"{count:,} filters ({count / filters:.1%}) look like squares; {report['off_grid']:.0%} of "
        "them are explained better by a centre that lies half a tap off the grid along both axes"
    )
    if report["direction"]:
        words += (
            f", and {report['one_direction']:.0%} of those are moved in the same direction "
            f"({report['direction']}; by chance it would be about 25%)"
        )
    if report["strided"] is not None:
        here, everywhere = report["strided"]
        words += (
            f". {here:.0%} of the square-like filters are in layers that subsample, which "
            f"hold {everywhere:.0%} of all filters of this size"
        )
    several = layers.index.get_level_values("model").nunique() > 1
    most = ", ".join(
        f"{model + ' / ' if several else ''}{name} ({n / count:.0%})"
        for (model, name), n in layers.head(4).items()
    )
    return f"{words}. The layers that hold most of them: {most}."

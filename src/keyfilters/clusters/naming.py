"""Naming prototypes by the idealised filter they resemble most, or leaving them unnamed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.nulls import null_units
from keyfilters.receptive_fields import FAMILIES, KINDS, build_dictionary
from keyfilters.receptive_fields.families import formula_in

__all__ = ["PATTERN_KINDS", "UNNAMED", "chance_similarity", "name_filters"]

UNNAMED = "unnamed"
PATTERN_KINDS = ("on-centre", "off-centre", *(kind for kind in KINDS if kind != "centre"), UNNAMED)
AS_GOOD = 0.01  # a simpler form within this similarity of the best gives the name
ELONGATED = 2.0  # ratio of the two scales from which on smoothing is called a bar


@lru_cache(maxsize=16)
def chance_similarity(size: tuple[int, int], quantile: float = 0.99, draws: int = 4000) -> float:
    """Return the similarity to its nearest idealised form that few white filters exceed.

    It says how much the size of the window alone makes forms alike, and is a property of the
    window. A name tells which form is nearest; whether filters are nearer to such forms than those
    of a null is a claim of its own, see `keyfilters.clusters.evidence`.

    Args:
        size: window ``(k_y, k_x)``.
        quantile: share of white filters that stay below.
        draws: number of white filters.
    """
    atoms = build_dictionary(size).atoms.reshape(-1, size[0] * size[1])
    white = null_units(atoms, size, "white", 0, draws)
    return float(np.quantile(np.abs(white @ atoms.T).max(1), quantile))


def name_filters(
    prototypes: NDArray[np.float32], size: tuple[int, int], threshold: float
) -> pd.DataFrame:
    """Name every prototype by its nearest idealised filter and the sign.

    A name needs a similarity of at least ``1 - threshold`` that also at most one white filter in
    a hundred reaches in this window (`chance_similarity`); otherwise the prototype is `UNNAMED`.
    Where several forms are within 0.01 of the best, the simplest gives the name.

    Args:
        prototypes: ``(P, taps)`` centred, of unit norm.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which two filters count as alike.

    Returns:
        A frame with one row a prototype: name, kind (a coarse group of names, centres split into on
        and off), family, formula, sigma, second (the family's second
        parameter), sign (of the amplitude), similarity, and atom (index into the dictionary).
    """
    dictionary = build_dictionary(size)
    atoms = dictionary.atoms.reshape(len(dictionary.atoms), -1)
    rank = np.array([FAMILIES[i].rank for i in dictionary.family])
    needed = max(1 - threshold, chance_similarity(size))
    rows = []
    for cosine in prototypes @ atoms.T:
        similarity = np.abs(cosine)
        good = similarity >= similarity.max() - AS_GOOD
        simplest = good & (rank == rank[good].min())
        atom = int(np.where(simplest, similarity, -1).argmax())
        family = FAMILIES[dictionary.family[atom]]
        sign = 1 if cosine[atom] > 0 else -1
        sigma, second = dictionary.parameters[atom]
        name = family.positive if sign > 0 else family.negative
        kind = family.kind
        if family.separable == ("0", "0") and (bar := _bar(sigma, second, sign)):
            name, kind = bar, "second derivative"
        elif kind == "centre":
            # A centre's name tells its sign: smoothing and on-centre are bright in the middle.
            kind = "off-centre" if name in ("off-centre", "inverted smoothing") else "on-centre"
        named = similarity[atom] >= needed
        rows.append(
            {
                "name": name if named else UNNAMED,
                "kind": kind if named else UNNAMED,
                "family": family.name,
                "formula": formula_in(family.name, size),
                "sigma": sigma,
                "second": second,
                "sign": sign,
                "similarity": float(similarity[atom]),
                "atom": atom,
            }
        )
    return pd.DataFrame(rows)


def _bar(sigma_x: float, sigma_y: float, sign: int) -> str | None:
    """Name of smoothing along one axis only, which is a bar like a second derivative's; or None."""
    if np.isnan(sigma_y):  # a single row has no bars
        return None
    if max(sigma_x, sigma_y) < ELONGATED * min(sigma_x, sigma_y) or max(sigma_x, sigma_y) < 1:
        return None
    axis = "x" if sigma_x > sigma_y else "y"
    return f"bar along {axis} ({'on' if sign > 0 else 'off'})"

"""The receptive field of every filter, quickly: what `compare` and `Monitor` count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.receptive_fields import has_models, match
from keyfilters.receptive_fields.models import mean_scale

__all__ = ["EXPLAINED", "UNEXPLAINED", "forms", "has_forms"]

EXPLAINED = 0.64  # r² of a dissimilarity of 0.2, as `Atlas` counts it
UNEXPLAINED = "unexplained"


def has_forms(size: tuple[int, int]) -> bool:
    """Whether idealised receptive fields exist for a window."""
    return has_models(size)


def forms(filters: NDArray[np.floating[Any]]) -> pd.DataFrame:
    """Match filters with the separable receptive fields, 25 in windows of 3 and more taps a side.

    Args:
        filters: ``(n, k_y, k_x)`` with a shape, see `has_forms`.

    Returns:
        One row a filter: pattern (the kind of field, centres split into on and off;
        ``"unexplained"`` below r² = 0.64), r2, and sigma, the geometric mean scale in
        taps (of a single row, the scale along it).
    """
    found = match(filters, families="separable", null=None)
    kind = found["kind"].to_numpy(dtype=object)
    sign = np.where(found["amplitude"] > 0, "on-centre", "off-centre")
    pattern = np.where(kind == "centre", sign, kind)
    pattern = np.where(found["r2"] >= EXPLAINED, pattern, UNEXPLAINED)
    sigma = mean_scale(found)
    return pd.DataFrame({"pattern": pattern, "r2": found["r2"], "sigma": sigma})

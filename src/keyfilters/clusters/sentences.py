"""What the figures of one kernel size say, in sentences computed from the claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from keyfilters.claims import LEVEL
from keyfilters.nulls import NULLS

__all__ = ["NEGLIGIBLE", "in_words"]

NEGLIGIBLE = 0.02  # share of the strictest null below which chance explains next to nothing


def in_words(claims: pd.DataFrame, kernel: str, threshold: float) -> dict[str, str]:
    """Say what is covered, explained and made of keys, each beside its strictest null.

    Args:
        claims: rows of one kernel size of `keyfilters.Atlas.claims_`.
        kernel: such as ``"5×5"``.
        threshold: dissimilarity below which a filter counts as covered.

    Returns:
        Sentences under ``coverage``, and where there are such claims ``explained`` and ``keys``.
    """
    rows = {row["claim"]: row for row in claims.to_dict("records")}
    code, ideal = rows["coverage, autoencoder 1-D"], rows["coverage, idealised filters"]
    words = {
        "coverage": f"At a dissimilarity of {threshold:g} a one-dimensional code covers "
        f"{code['value']:.0%} of the {kernel} filters ({code['held_out']:.0%} held out) and "
        f"idealised filters cover {ideal['value']:.0%}. {_beside(code, 'the code')} "
        f"{_beside(ideal, 'the idealised filters')}"
    }
    found = [row for name, row in rows.items() if name.startswith("explained by one")]
    if found:
        words["explained"] = (
            f"One idealised receptive field explains enough of {found[0]['value']:.0%} of the "
            f"{kernel} filters (r² ≥ {(1 - threshold) ** 2:.2g}). "
            f"{_beside(found[0], 'the same match')}"
        )
    keys = [row for name, row in rows.items() if name.startswith("variance explained by")]
    if keys:
        words["keys"] = " ".join(
            f"{row['claim'].removeprefix('variance explained by ').capitalize()} explain "
            f"{row['value']:.0%} of the variance of the {kernel} filters. {_beside(row, 'they')}"
            for row in keys
        )
    return words


def _beside(row: Mapping[str, Any], what: str) -> str:
    """One sentence: what the strictest null gives, and whether the claim exceeds it."""
    give = "give" if what == "they" or what.endswith("s") else "gives"
    start = f"For {NULLS[row['strictest']]}, the strictest null, {what} {give} {row['chance']:.0%}"
    held_out = row[f"{row['strictest']} held out"]
    if held_out == held_out:  # not NaN: something was learned
        start += f" ({held_out:.0%} held out)"
    if not row["q"] < LEVEL:
        return f"{start}: no more is shown here than chance gives."
    if row["chance"] < NEGLIGIBLE:
        return f"{start}: chance explains next to nothing of it."
    return f"{start}: {100 * (row['value'] - row['chance']):.0f} points lie beyond chance."

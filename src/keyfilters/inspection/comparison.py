"""What a comparison of two models gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Comparison", "near_one", "write_value"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models side by side, see `keyfilters.compare`.

    Attributes:
        a: name of the first model.
        b: name of the second.
        how: ``"position"`` for models of one layout, else ``"depth"``.
        filters: one row a pair of filters that both have a shape: layer, layer_b, depth, size,
            channel, channel_b, untouched (equal to the bit), cosine (of the centred forms; by depth
            the negative of a filter of b may stand for it), norm_ratio (b over a, centred), change
            (norm of the difference over the norm of a), and cosine and norm_ratio of each null.
        layers: one row a layer: medians of the same; null, the median cosine of the null that
            comes nearest, and strictest, its kind; flipped, the share with a negative cosine; of
            the sample in ``patterns``, explained_a, explained_b and explained_null, the shares that
            one receptive field explains, and sigma_a and sigma_b, their median scale in taps.
        patterns: one row a pair of a sample: number of its layer in ``layers``, kind of receptive
            field, r2 and sigma (taps) of a, b and each null.
        flow: one row a pattern of a and one of b: share of the pairs, and of each null.
        totals: one row a measure: its value in a and b, in each null, and the strictest of these.
        counts: number of filters of a and of b; by position also how many lost their shape (died,
            or became constant or non-finite), and gained one.
        steps: of more than two models, one row each: distance from the first and from the one
            before, explained beside chance (the stricter of the covariance and phase nulls), sigma
            (taps) and median norm; None for two.
        most_changed: the pairs that differ most in shape, with both filters.
    """

    a: str
    b: str
    how: str
    filters: pd.DataFrame
    layers: pd.DataFrame
    patterns: pd.DataFrame
    flow: pd.DataFrame
    totals: pd.DataFrame
    counts: dict[str, int]
    steps: pd.DataFrame | None
    most_changed: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """What the numbers say, in one line."""
        if self.filters["untouched"].all() and self.how == "position" and not self._lost():
            return f"All {len(self.filters):,} filters are equal to the bit."
        parts = [
            self._untouched(),
            self._cosine(),
            self._kept(),
            self._explained(),
            self._flipped(),
            self._lost(),
        ]
        text = "; ".join(filter(None, parts)) + "."
        return text[0].upper() + text[1:]

    def _untouched(self) -> str:
        if self.how != "position":
            return ""
        untouched = int((self.layers["untouched"] == 1).sum())
        are = "is" if untouched == 1 else "are"
        return f"{untouched} of {len(self.layers)} layers {are} equal to the bit"

    def _total(self, measure: str) -> Any:
        found = self.totals[self.totals["measure"].str.startswith(measure)].to_dict("records")
        return found[0] if found else None

    def _cosine(self) -> str:
        row = self._total("median cosine")
        value, chance = near_one(row["b"]), near_one(row[row["strictest"]])
        if self.how == "position":
            return (
                f"the median filter keeps a cosine of {value} with itself (a change of equal size "
                f"in random directions: {chance})"
            )
        return (
            f"the median filter of {self.a} meets one of {self.b} at a cosine of {value} "
            f"(among as many without structure: {chance})"
        )

    def _kept(self) -> str:
        row = self._total("same pattern")
        if row is None:
            return ""
        return f"{row['b']:.1%} have the same pattern (null: {row[row['strictest']]:.1%})"

    def _explained(self) -> str:
        row, sigma = self._total("explained"), self._total("median σ")
        if row is None:
            return ""
        told = f"one receptive field explains {row['a']:.1%} and {row['b']:.1%} of them"
        if pd.isna(sigma["a"]) or pd.isna(sigma["b"]):
            return told
        return f"{told}, median σ {sigma['a']:.2f} and {sigma['b']:.2f} taps"

    def _flipped(self) -> str:
        flipped = int((self.filters["cosine"] < 0).sum())
        return f"{flipped:,} of {len(self.filters):,} point the other way" if flipped else ""

    def _lost(self) -> str:
        told = [
            f"{self.counts[key]:,} {key} {'its' if self.counts[key] == 1 else 'their'} shape"
            for key in ("lost", "gained")
            if self.counts.get(key)
        ]
        return "; ".join(told).replace("gained its", "gained a").replace("gained their", "gained a")

    def __repr__(self) -> str:
        row = self._total("median cosine")
        value, chance = near_one(row["b"]), near_one(row[row["strictest"]])
        return (
            f"Comparison({self.a} and {self.b}, {len(self.filters):,} pairs by {self.how}: "
            f"median cosine {value}, null {chance})"
        )

    def _repr_html_(self) -> str:
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        rows = self.most_changed[:12]
        sheet = "".join(
            f"<p>those that differ most, {escape(name)}</p>"
            + contact_sheet([row[key] for row in rows], columns=12)
            for key, name in (("a", self.a), ("b", self.b))
            if rows
        )
        totals = self.shown_totals().to_html(index=False)
        return f"<p>{escape(f'{self.a} and {self.b}: {self.verdict}')}</p>{sheet}{totals}"

    def shown_totals(self) -> pd.DataFrame:
        """Return ``totals`` as text: measure, a, b, its strictest null and the null's kind."""
        rows = []
        for row in self.totals.to_dict("records"):
            values = {"a": row["a"], "b": row["b"], "null": row[row["strictest"]]}
            told = {key: write_value(row["measure"], value) for key, value in values.items()}
            rows.append({"measure": row["measure"], **told, "kind": row["strictest"]})
        return pd.DataFrame(rows)


def write_value(measure: str, value: float) -> str:
    """Write a value of ``Comparison.totals`` in the unit of its measure; nothing for NaN.

    >>> write_value("median cosine", 0.9999987), write_value("same pattern", 0.5)
    ('1 − 1.3e-06', '50.0%')
    """
    if pd.isna(value):
        return ""
    if "cosine" in measure:
        return near_one(value)
    return f"{value:.3f}" if "ratio" in measure or "σ" in measure else f"{value:.1%}"


def near_one(cosine: float) -> str:
    """Write a cosine so that what it lacks to 1 can be read; "–" for NaN.

    >>> near_one(0.95372), near_one(0.9999987)
    ('0.9537', '1 − 1.3e-06')
    """
    if np.isnan(cosine):
        return "–"
    return f"{cosine:.4f}" if cosine < 0.9995 or cosine == 1 else f"1 − {1 - cosine:.1e}"

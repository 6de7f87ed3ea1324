"""What a comparison of two models gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["Comparison"]


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
            (norm of the difference over the norm of a), and the cosine of each null.
        layers: one row a layer: medians of the same; null, the median cosine of the null that
            comes nearest, and strictest, its kind; flipped, the share with a negative cosine.
        patterns: one row a pair of a sample: kind of receptive field, r2 and sigma (taps) of a, b
            and each null.
        flow: one row a pattern of a and one of b: share of the pairs, and of each null.
        totals: one row a measure: its value in a and b, in each null, and the strictest of these.
        counts: number of filters of a and of b; by position also how many lost their shape (died,
            or became constant or non-finite), and gained one.
        steps: of more than two models, one row each: distance from the first and from the one
            before; None for two.
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
        parts = [self._untouched(), self._cosine(), self._kept(), self._flipped(), self._lost()]
        text = "; ".join(filter(None, parts)) + "."
        return text[0].upper() + text[1:]

    def _untouched(self) -> str:
        if self.how != "position":
            return ""
        untouched = int((self.layers["untouched"] == 1).sum())
        are = "is" if untouched == 1 else "are"
        return f"{untouched} of {len(self.layers)} layers {are} equal to the bit"

    def _total(self, measure: str) -> Any:
        found = self.totals[self.totals["measure"] == measure].to_dict("records")
        return found[0] if found else None

    def _cosine(self) -> str:
        row = self._total("median cosine")
        value, chance = _near_one(row["b"]), _near_one(row[row["strictest"]])
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
        return f"{row['b']:.1%} have the same pattern ({row[row['strictest']]:.1%} in that null)"

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
        return f"Comparison({self.a} and {self.b}: {self.verdict})"

    def _repr_html_(self) -> str:
        from keyfilters.thumbnails import contact_sheet

        sides = [row[key] for row in self.most_changed[:12] for key in ("a", "b")]
        sheet = contact_sheet(sides, columns=12)
        totals = self.totals.to_html(index=False, float_format="{:.4g}".format, na_rep="")
        return f"<p>{self.a} and {self.b}: {self.verdict}</p>{sheet}{totals}"


def _near_one(cosine: float) -> str:
    """Write a cosine so that what it lacks to 1 can be read.

    >>> _near_one(0.95372), _near_one(0.9999987)
    ('0.9537', '1 − 1.3e-06')
    """
    return f"{cosine:.4f}" if cosine < 0.9995 or cosine == 1 else f"1 − {1 - cosine:.1e}"

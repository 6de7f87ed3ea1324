"""A claim about filters beside the same claim about its nulls, and whether it exceeds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.nulls import NULLS

__all__ = ["FILTERS", "LEVEL", "Claim", "claims_table", "halves"]

FILTERS = "filters"  # what is no null
LEVEL = 0.05  # share of pages that claim something where nothing is to be found
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Claim:
    """The mean score of a bank's filters, beside what the same function gives on its nulls.

    Attributes:
        name: what is measured, such as the method whose coverage it is.
        value: mean score of the filters, over seeds if there are several.
        sd: standard deviation over seeds; NaN for one.
        held_out: the same, learned on one half of the layers or models and measured on the other;
            NaN where nothing is learned.
        nulls: the value of each null, weak ones first.
        nulls_held_out: the held-out value of each null.
        p: probability of so much in the null that comes nearest; one-sided.
    """

    name: str
    value: float
    sd: float
    held_out: float
    nulls: dict[str, float]
    nulls_held_out: dict[str, float]
    p: float

    @property
    def strictest(self) -> str:
        """Null whose value is the largest."""
        return max(self.nulls, key=lambda null: self.nulls[null])

    @property
    def chance(self) -> float:
        """Value of the strictest null."""
        return self.nulls[self.strictest]

    @classmethod
    def measure(
        cls,
        name: str,
        scores: Mapping[str, Scores],
        held_out: Mapping[str, Scores] | None = None,
    ) -> Claim:
        """Compare the scores of filters with those of null filters.

        The p-value is that of a normal test of two means: their variance is that of the mean over
        the filters plus that over fits with other seeds, pooled over the nulls. It tests the
        hypothesis that the filters are independent draws of the null. The largest p of all nulls
        counts, held out too, so that whatever is claimed is claimed against each.

        Args:
            name: what is measured.
            scores: ``(seeds, n)`` score of every filter, of `FILTERS` and of each null.
            held_out: ``(n,)`` scores by what was learned on the other half.
        """
        nulls = [null for null in NULLS if null in scores]
        spread = _variance_over_fits(scores, nulls)
        samples = [{data: s.mean(axis=0, dtype=np.float64) for data, s in scores.items()}]
        fits = [{data: len(s) for data, s in scores.items()}]
        if held_out is not None:
            samples.append({data: np.asarray(s, np.float64) for data, s in held_out.items()})
            fits.append(dict.fromkeys(held_out, 1))
        mean = [{data: float(s.mean()) for data, s in sample.items()} for sample in samples]
        by_seed = scores[FILTERS].mean(axis=1, dtype=np.float64)
        learned = mean[1] if held_out is not None else dict.fromkeys(scores, float("nan"))
        return cls(
            name=name,
            value=mean[0][FILTERS],
            sd=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
            held_out=learned[FILTERS],
            nulls={null: mean[0][null] for null in nulls},
            nulls_held_out={null: learned[null] for null in nulls},
            p=max(
                _upper_tail(
                    found[FILTERS] - found[null],
                    sum(
                        sample[d].var() / sample[d].size + spread[d] / fit[d]
                        for d in (FILTERS, null)
                    ),
                )
                for found, sample, fit in zip(mean, samples, fits, strict=True)
                for null in nulls
            ),
        )


def claims_table(claims: list[Claim]) -> pd.DataFrame:
    """One row a claim: claim, value, sd, held_out, each null, each null held out, strictest, p."""
    rows = [
        {"claim": c.name, "value": c.value, "sd": c.sd, "held_out": c.held_out}
        | c.nulls
        | {f"{null} held out": value for null, value in c.nulls_held_out.items()}
        | {"strictest": c.strictest, "chance": c.chance, "p": c.p}
        for c in claims
    ]
    return pd.DataFrame(rows)


def halves(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Divide filters in two, so that what is learned on one half is measured on the other.

    Models are divided where there are several, largest first and in turn; else the layers, every
    second one. Where a half so made has less than a quarter of the filters, each group goes to the
    smaller half, largest first; where that does not help, the layers of all models are divided in
    this way, and else every second filter.

    Args:
        table: with the columns model and layer, as of `keyfilters.FilterBank.stack`.

    Returns:
        ``(n,)``: whether a filter is in the first half.

    >>> halves(pd.DataFrame({"model": "net", "layer": ["a", "a", "b", "c"]})).tolist()
    [True, True, False, True]
    """
    several = table["model"].nunique() > 1
    groups = table["model"] if several else table["layer"]
    names = groups.value_counts().index if several else groups.unique()
    for divide in (
        lambda: groups.isin(names[::2]).to_numpy(),
        lambda: _even(groups),
        lambda: _even(table["model"].astype(str) + "\0" + table["layer"].astype(str)),
    ):
        half: NDArray[np.bool_] = divide()
        if 4 * min(half.sum(), (~half).sum()) >= len(table):
            return half
    return np.arange(len(table)) % 2 == 0


def _even(groups: pd.Series) -> NDArray[np.bool_]:
    """Divide groups in two, the largest first, each to the half that is smaller so far."""
    first, sizes = [], [0, 0]
    for name, count in groups.value_counts().items():
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += int(count)
        first += [] if smaller else [name]
    return groups.isin(first).to_numpy()


def _variance_over_fits(scores: Mapping[str, Scores], nulls: list[str]) -> dict[str, float]:
    """Variance over seeds of a fit's mean score: of the filters, and pooled over the nulls.

    Where one of the two was fitted with a single seed, it takes the other's.
    """
    found: dict[str, float] = {}
    for group in ([FILTERS], nulls):
        means = [scores[d].mean(axis=1, dtype=np.float64) for d in group if len(scores[d]) > 1]
        freedom = sum(len(m) - 1 for m in means)
        if freedom:
            variance = sum(((m - m.mean()) ** 2).sum() for m in means) / freedom
            found |= dict.fromkeys(group, float(variance))
    known = max(found.values(), default=0.0)
    return {data: found.get(data, known) for data in (FILTERS, *nulls)}


def _upper_tail(difference: float, variance: float) -> float:
    from scipy.stats import norm

    if variance <= 0:
        return 0.0 if difference > 0 else 1.0
    return float(norm.sf(difference / np.sqrt(variance)))

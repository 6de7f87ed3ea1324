"""How much of every filter an idealised receptive field explains, and what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, Claim
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.models import mean_scale, render_models
from keyfilters.receptive_fields.significance import significance
from keyfilters.scalespace import half_grid_offset, separability_index
from keyfilters.threads import one_thread

__all__ = ["Matched", "match_filters"]

NULL_SAMPLE = 1000  # filters of each null that are matched, at most
DECIDES = "covariance"  # null of the p-values
COMPONENTS = 4


@dataclass(frozen=True, eq=False)
class Matched:
    """Idealised models of all usable filters of one kernel size.

    Attributes:
        table: one row a filter: the columns of `match` but flaw, and half_grid_offset (taps) and
            separability (index, 0 for separable) of the filter without its offset.
        bar: r² from which a filter counts as explained, ``(1 - threshold)²``.
        shares: one row a kind of model: kind, filters, share (explained, of all), r2 (median),
            sigma_low, sigma, sigma_high (quartiles of the geometric mean scale in taps),
            half_grid_offset and separability (medians).
        nulls: r² of null filters matched in the same way, by the kind of the null.
        claim: share of filters that are explained, beside the nulls.
        residual: ``(k_y, k_x)`` mean of what the models leave over, filters scaled to unit norm.
        components: ``(4, k_y, k_x)`` principal components of what is left over.
        component_shares: ``(4,)`` their shares of its power.
    """

    table: pd.DataFrame
    bar: float
    shares: pd.DataFrame
    nulls: dict[str, NDArray[np.float64]]
    claim: Claim
    residual: NDArray[np.float64]
    components: NDArray[np.float64]
    component_shares: NDArray[np.float64]

    @property
    def significant(self) -> float:
        """Share of the filters whose r² few null filters reach (false-discovery rate 5 %)."""
        return float((self.table["q"] < 0.05).mean())


@one_thread()
def match_filters(
    filters: NDArray[np.float32],
    nulls: Mapping[str, NDArray[np.float32]],
    threshold: float,
    device: str = "cpu",
) -> Matched:
    """Match all filters, and as many null filters as are needed to compare.

    The p-values are against the null with the same tap covariance.

    Args:
        filters: ``(n, k_y, k_x)`` usable filters, see `keyfilters.receptive_fields.has_models`.
        nulls: ``(m, taps)`` null filters by kind; the first thousand are matched.
        threshold: dissimilarity below which two filters count as alike.
        device: where to compute.
    """
    flat = filters.reshape(len(filters), -1)
    samples = {kind: null[:NULL_SAMPLE] for kind, null in nulls.items()}
    together = np.concatenate([flat, *samples.values()]).reshape(-1, *filters.shape[1:])
    found = match(together, null=None, device=device)  # one call: much of its cost is fixed
    ends = np.cumsum([len(flat), *map(len, samples.values())])
    table = found[: len(flat)].drop(columns="flaw")
    r2 = found["r2"].to_numpy()
    null_r2 = {k: r2[e - len(samples[k]) : e] for k, e in zip(samples, ends[1:], strict=True)}
    decides = significance(table["r2"].to_numpy(), null_r2[DECIDES], DECIDES)
    table = pd.concat([table, decides], axis=1)
    lifted = torch.tensor(filters - table["offset"].to_numpy()[:, None, None])
    table["half_grid_offset"] = half_grid_offset(lifted).numpy()
    table["separability"] = separability_index(lifted).numpy()
    bar = (1 - threshold) ** 2
    good = {key: (x >= bar).astype(float)[None] for key, x in null_r2.items()}
    good[FILTERS] = (table["r2"].to_numpy() >= bar).astype(float)[None]
    left = (filters - render_models(table, filters.shape[1:])).reshape(len(filters), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    left = left / np.linalg.norm(centred, axis=1, keepdims=True)
    _, values, directions = np.linalg.svd(left - left.mean(axis=0), full_matrices=False)
    power = values**2 / max(float((values**2).sum()), 1e-30)
    shape = (-1, *filters.shape[1:])
    return Matched(
        table=table,
        bar=bar,
        shares=_by_kind(table, bar),
        nulls=null_r2,
        claim=Claim.measure(f"explained by one receptive field, r² ≥ {bar:.2g}", good),
        residual=left.mean(axis=0).reshape(filters.shape[1:]),
        components=directions[:COMPONENTS].reshape(shape),
        component_shares=power[:COMPONENTS],
    )


def _by_kind(table: pd.DataFrame, bar: float) -> pd.DataFrame:
    rows = []
    scale = mean_scale(table)
    for kind, part in table.groupby("kind"):
        good = part[part["r2"] >= bar]
        sigma = scale[(good if len(good) else part).index]
        rows.append(
            {
                "kind": kind,
                "filters": len(part),
                "share": len(good) / len(table),
                "r2": part["r2"].median(),
                "sigma_low": sigma.quantile(0.25),
                "sigma": sigma.median(),
                "sigma_high": sigma.quantile(0.75),
                "half_grid_offset": part["half_grid_offset"].median(),
                "separability": part["separability"].median(),
            }
        )
    return pd.DataFrame(rows).sort_values("share", ascending=False, ignore_index=True)

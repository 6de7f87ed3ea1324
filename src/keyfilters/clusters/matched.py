"""How much of every filter an idealised receptive field explains, and what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, Claim
from keyfilters.clusters.per_filter import grain_by_grain
from keyfilters.columns import text_column
from keyfilters.filter_rows import FilterRows
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.families import MATCHED
from keyfilters.receptive_fields.models import mean_scale, render_models
from keyfilters.receptive_fields.significance import significance
from keyfilters.receptive_fields.tables import make_tables
from keyfilters.scalespace import half_grid_offset, separability_index
from keyfilters.threads import one_thread, side_by_side

__all__ = ["Matched", "match_filters"]

NULL_SAMPLE = 1000  # filters of each null that are matched, at most
DECIDES = "covariance"  # null of the p-values
COMPONENTS = 4
MATCH_COLUMNS = ("family", "kind", "sigma_x", "sigma_y", "second", "angle", "amplitude", "offset",
                 "r2", "parameters")  # fmt: skip
SHAPE_COLUMNS = ("half_grid_offset", "separability")


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
    filters: NDArray[np.float32] | FilterRows,
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
    size = (filters.shape[1], filters.shape[2])
    make_tables(size, torch.device(device))
    samples = [null[:NULL_SAMPLE].reshape(-1, *size) for null in nulls.values()]
    matched = side_by_side([partial(match, x, null=None, device=device) for x in samples])
    null_r2 = {kind: x["r2"].to_numpy() for kind, x in zip(nulls, matched, strict=True)}
    table, left = _match_all(filters, size, device)
    decides = significance(table["r2"].to_numpy(), null_r2[DECIDES], DECIDES)
    for place, name in enumerate(decides):
        table.insert(len(MATCH_COLUMNS) + place, name, decides[name])
    bar = (1 - threshold) ** 2
    good = {key: (x >= bar).astype(float)[None] for key, x in null_r2.items()}
    good[FILTERS] = (table["r2"].to_numpy() >= bar).astype(float)[None]
    mean, power, directions = left.components(len(filters))
    return Matched(
        table=table,
        bar=bar,
        shares=_by_kind(table, bar),
        nulls=null_r2,
        claim=Claim.measure(f"explained by one receptive field, r² ≥ {bar:.2g}", good),
        residual=mean.reshape(size),
        components=directions[:COMPONENTS].reshape(-1, *size),
        component_shares=power[:COMPONENTS] / max(float(power.sum()), 1e-30),
    )


@dataclass
class _LeftOver:
    """Sum ``(taps,)`` and products ``(taps, taps)`` of what models leave over of filters."""

    total: NDArray[np.float64] | float = 0.0
    products: NDArray[np.float64] | float = 0.0

    def add(self, other: _LeftOver) -> None:
        self.total, self.products = self.total + other.total, self.products + other.products

    def components(self, count: int) -> tuple[NDArray[np.float64], ...]:
        """Return the mean, and power and directions ``(taps, taps)`` of principal components.

        The largest tap of a direction is positive.
        """
        mean = np.asarray(self.total) / count
        power, directions = np.linalg.eigh(self.products - count * np.outer(mean, mean))
        directions = directions.T[::-1]
        largest = np.abs(directions).argmax(1)
        sign = np.sign(directions[np.arange(len(directions)), largest])
        return mean, power[::-1].clip(0), directions * sign[:, None]


def _match_all(
    filters: NDArray[np.float32] | FilterRows, size: tuple[int, int], device: str
) -> tuple[pd.DataFrame, _LeftOver]:
    """Match filters and measure where and how separable they are, and what is left over."""

    def work(rows: slice) -> tuple[pd.DataFrame, _LeftOver]:
        return _match_grain(filters[rows], size, device)

    names = [form.name for form in MATCHED]
    kinds = list(dict.fromkeys(form.kind for form in MATCHED))
    family = np.empty(len(filters), np.uint8)
    numbers = {name: np.empty(len(filters)) for name in (*MATCH_COLUMNS[2:], *SHAPE_COLUMNS)}
    left = _LeftOver()
    for rows, (found, rest) in grain_by_grain(work, len(filters)):
        family[rows] = pd.Index(names).get_indexer(found["family"])
        for name, column in numbers.items():
            column[rows] = found[name]
        left.add(rest)  # in order, so that it rounds in one way
    kind = np.array([kinds.index(form.kind) for form in MATCHED], np.uint8)[family]
    columns = {"family": text_column(family, names), "kind": text_column(kind, kinds)} | numbers
    return pd.DataFrame(columns, copy=False), left


def _match_grain(
    filters: NDArray[np.float32], size: tuple[int, int], device: str
) -> tuple[pd.DataFrame, _LeftOver]:
    table = match(filters, null=None, device=device)
    lifted = torch.tensor(filters - table["offset"].to_numpy()[:, None, None])
    table["half_grid_offset"] = half_grid_offset(lifted).numpy()
    table["separability"] = separability_index(lifted).numpy()
    flat = filters.reshape(len(filters), -1)
    left = flat - render_models(table, size).reshape(flat.shape)
    left /= np.linalg.norm(flat - flat.mean(axis=1, keepdims=True), axis=1, keepdims=True)
    return table, _LeftOver(left.sum(axis=0), left.T @ left)


def _by_kind(table: pd.DataFrame, bar: float) -> pd.DataFrame:
    rows = []
    shapes = table[["r2", *SHAPE_COLUMNS]].assign(scale=mean_scale(table))
    for kind, part in shapes.groupby(table["kind"], observed=True):
        good = part[part["r2"] >= bar]
        sigma = (good if len(good) else part)["scale"]
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
    found = pd.DataFrame(rows).sort_values("kind")
    return found.sort_values("share", ascending=False, ignore_index=True)

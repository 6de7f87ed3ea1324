"""Which filter of one bank stands for which of another, and what chance would put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.inspection.rules.duplicates import BLOCK
from keyfilters.nulls import NULLS, null_bank
from keyfilters.scalespace import centred_unit, why_unusable

__all__ = ["Pairs", "pair_filters", "pair_table", "same_layout"]

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of filters of two layers of one kernel size.

    Attributes:
        layer_a: layer of the first bank.
        layer_b: layer of the second.
        channel_a: ``(n,)`` channels of the first; those where both filters have a shape.
        channel_b: ``(n,)`` channels of the second.
        a: ``(n, k_y, k_x)`` float64.
        b: ``(n, k_y, k_x)`` float64.
        nulls: filters in place of `b` by the kind of the null, see `pair_filters`.
    """

    layer_a: Layer
    layer_b: Layer
    channel_a: NDArray[np.int64]
    channel_b: NDArray[np.int64]
    a: Array
    b: Array
    nulls: Mapping[str, Array]


def same_layout(a: FilterBank, b: FilterBank) -> bool:
    """Whether both have the same layers, by size and number of filters, in the same order."""
    return [x.weight.shape for x in a.layers] == [x.weight.shape for x in b.layers]


def pair_filters(a: FilterBank, b: FilterBank, seed: int) -> Iterator[Pairs]:
    """Pair the filters of two banks, layer by layer.

    Banks of the same layout are paired by position, and their nulls are changes of equal size:
    ``a + null(b − a)``, where every difference is replaced by one of the same norm from
    `keyfilters.null_bank` of the differences. Other banks are paired by the relative depth and the
    kernel size of their layers, and each filter with the nearest of that layer, up to a·x + b (its
    negative is taken where that is nearer); their nulls are the nearest filters in null banks of
    the second bank.

    Raises:
        KeyFiltersError: no kernel size stands in both.
    """
    if same_layout(a, b):
        yield from _by_position(a, b, seed)
        return
    if not set(a.sizes) & set(b.sizes):
        held = [", ".join(f"{y}×{x}" for y, x in bank.sizes) for bank in (a, b)]
        raise KeyFiltersError(
            f"nothing to compare: one model has filters of {held[0]}, the other of {held[1]}; "
            "give two models with a common kernel size"
        )
    yield from _by_depth(a, b, seed)


def _by_position(a: FilterBank, b: FilterBank, seed: int) -> Iterator[Pairs]:
    scales, differences = [], []
    for x, y in zip(a.layers, b.layers, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            difference = y.weight.astype(np.float64) - x.weight
            scale = np.linalg.norm(difference, axis=(1, 2), keepdims=True)
        # To unit norm, so that a small change is not taken for a dead filter.
        told = np.isfinite(scale) & (scale > 0)
        unit = np.where(told, difference / np.where(told, scale, 1), 0).astype(np.float32)
        scales.append(np.where(told, scale, 0))
        differences.append(replace(x, weight=unit))
    nulls = {kind: null_bank(FilterBank(differences), kind, seed).layers for kind in NULLS}
    for i, (x, y) in enumerate(zip(a.layers, b.layers, strict=True)):
        rows = np.flatnonzero((why_unusable(x.weight) == "") & (why_unusable(y.weight) == ""))
        first = x.weight[rows].astype(np.float64)
        changed = {kind: first + scales[i][rows] * n[i].weight[rows] for kind, n in nulls.items()}
        yield Pairs(x, y, rows, rows, first, y.weight[rows].astype(np.float64), changed)


def _by_depth(a: FilterBank, b: FilterBank, seed: int) -> Iterator[Pairs]:
    nulls = {kind: null_bank(b, kind, seed).layers for kind in NULLS}
    for x in a.layers:
        near = [
            i
            for i, y in enumerate(b.layers)
            if y.size == x.size and (why_unusable(y.weight) == "").any()
        ]
        rows = np.flatnonzero(why_unusable(x.weight) == "")
        if not near or not len(rows):
            continue
        best = min(near, key=lambda i: abs(b.layers[i].depth - x.depth))
        first = x.weight[rows].astype(np.float64)
        channels = np.flatnonzero(why_unusable(b.layers[best].weight) == "")
        second, found = _nearest(first, b.layers[best].weight[channels])
        chance = {
            k: _nearest(first, layers[best].weight[channels])[0] for k, layers in nulls.items()
        }
        yield Pairs(x, b.layers[best], rows, channels[found], first, second, chance)


def _nearest(filters: Array, others: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the nearest other of each filter up to sign, with the filter's sign, and which."""
    unit, known = centred_unit(filters), centred_unit(others)
    found, sign = [], []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ known.T
        best = np.abs(cosine).argmax(axis=1)
        found.append(best)
        sign.append(np.where(cosine[np.arange(len(best)), best] < 0, -1.0, 1.0))
    index = np.concatenate(found)
    return np.concatenate(sign)[:, None, None] * others[index].astype(np.float64), index


def pair_table(pairs: Pairs) -> pd.DataFrame:
    """One row a pair: layers, channels, and how far the second filter is from the first.

    Returns:
        Columns layer, layer_b, depth, size, channel, channel_b, untouched (equal to the bit),
        cosine (of the centred forms), norm_ratio (of the centred filters, second over first),
        change (norm of the difference over the norm of the first), and cosine and norm_ratio of
        each null.
    """
    taps = pairs.a.shape[1] * pairs.a.shape[2]
    first, second = (x.reshape(-1, taps) for x in (pairs.a, pairs.b))
    centred_a = first - first.mean(axis=1, keepdims=True)
    centred_b = second - second.mean(axis=1, keepdims=True)
    norm_a, norm_b = (np.linalg.norm(x, axis=1) for x in (centred_a, centred_b))
    size = np.linalg.norm(first, axis=1)
    columns: dict[str, Any] = {
        "layer": pairs.layer_a.name,
        "layer_b": pairs.layer_b.name,
        "depth": pairs.layer_a.depth,
        "size": "{}×{}".format(*pairs.layer_a.size),
        "channel": pairs.channel_a,
        "channel_b": pairs.channel_b,
        "untouched": (first == second).all(axis=1),
        "cosine": _cosine(centred_a, centred_b),
        "norm_ratio": norm_b / np.where(norm_a > 0, norm_a, np.nan),
        "change": np.linalg.norm(second - first, axis=1) / np.where(size > 0, size, np.nan),
    }
    for kind, null in pairs.nulls.items():
        flat = null.reshape(-1, taps)
        centred = flat - flat.mean(axis=1, keepdims=True)
        columns[f"cosine, {kind}"] = _cosine(centred_a, centred)
        norm = np.linalg.norm(centred, axis=1)
        columns[f"norm_ratio, {kind}"] = norm / np.where(norm_a > 0, norm_a, np.nan)
    return pd.DataFrame(columns)


def _cosine(a: Array, b: Array) -> Array:
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("nt,nt->n", a, b) / np.where(norm > 0, norm, 1))

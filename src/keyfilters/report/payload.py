"""What the page's script needs, packed small: filters as bytes, everything else as JSON."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import Layer
from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.clusters.key_use import KeyUse
from keyfilters.clusters.matched import Matched
from keyfilters.clusters.tables import filter_table
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields import build_dictionary
from keyfilters.receptive_fields.families import formula_in
from keyfilters.receptive_fields.models import render_models
from keyfilters.scalespace import centred_unit
from keyfilters.texts import printable

__all__ = ["KEY_SETS", "build_payload"]

LAYERS = 800  # shown, at most
MEMBERS = 12  # random members shown with every pattern
STRIP = 96  # decoded filters drawn along the 1-D code
NO_PATTERN = 255
KEY_SETS = ("published", "consensus")
EXAMPLES = 5  # best and worst of every kind of model


def build_payload(atlas: Atlas, *, budget: int = 1_400_000, seed: int = 0) -> dict[str, Any]:
    """Pack an atlas for the page.

    Args:
        atlas: a fitted atlas.
        budget: number of taps that the page can hold; beyond it the layers are thinned out evenly.
            Of more than `LAYERS` layers, so many are shown, evenly spaced.
        seed: of the random members.

    Returns:
        JSON-ready data: ``sizes``, ``layers``, ``shown`` and ``total`` (numbers of filters). Arrays
        of bytes are base64; a filter is drawn centred and scaled by its largest tap, as int8.
    """
    # The page shows the largest windows first.
    sizes = dict(sorted(atlas.sizes_.items(), key=lambda item: -item[0][0] * item[0][1]))
    layers = atlas.bank_.layers
    chosen = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), LAYERS)).round())
    drawn = [layers[int(i)] for i in chosen]
    keep = min(1.0, budget / sum(layer.weight.size for layer in drawn))
    channels = [_thin(len(layer.weight), keep) for layer in drawn]
    starts = np.cumsum([0, *(len(layer.weight) for layer in layers)])[chosen.astype(int)]
    rows = np.concatenate([start + own for start, own in zip(starts, channels, strict=True)])
    table = filter_table(atlas.bank_, atlas.sizes_, rows)
    coverage = _coverage_by_layer(atlas)
    ends = np.cumsum([len(own) for own in channels])
    packed = [
        _pack_layer(atlas, list(sizes), layer, layer.weight[own], table.iloc[end - len(own) : end],
                    coverage)
        for layer, own, end in zip(drawn, channels, ends, strict=True)
    ]  # fmt: skip
    generator = np.random.default_rng(seed)
    return {
        "sizes": [_pack_size(one, _Shown.of(one, rows), generator) for one in sizes.values()],
        "layers": packed,
        "shown": len(rows),
        "total": len(atlas.bank_),
    }


@dataclass(frozen=True, eq=False)
class _Shown:
    """Filters of one kernel size that are on the page.

    Attributes:
        own: ``(m,)`` their places among the usable filters of this size.
        place: ``(m,)`` their places among all filters of the page.
    """

    own: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, one: SizeAtlas, rows: NDArray[np.int64]) -> _Shown:
        """Find them, where the page has these rows of the table."""
        own = np.searchsorted(one.rows, rows).clip(max=len(one.rows) - 1)
        place = np.flatnonzero(one.rows[own] == rows)
        return cls(own[place], place)


def _thin(count: int, keep: float) -> NDArray[np.int64]:
    """Channels of a layer that are on the page: all, or evenly spaced ones."""
    wanted = count if keep >= 1 else max(8, int(count * keep))
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _pack_layer(
    atlas: Atlas,
    sizes: list[tuple[int, int]],
    layer: Layer,
    weight: NDArray[np.float32],
    rows: pd.DataFrame,
    coverage: dict[tuple[str, str], tuple[float, float]],
) -> dict[str, Any]:
    size = layer.size
    pattern = np.full(len(rows), NO_PATTERN)
    if size in atlas.sizes_:
        labels = atlas.sizes_[size].patterns.table["pattern"].tolist()
        number = {label: min(i, NO_PATTERN - 1) for i, label in enumerate(labels)}
        pattern = np.array([number.get(label, NO_PATTERN) for label in rows["pattern"]])
    known = coverage.get((layer.model, layer.name))
    far = rows["dissimilarity"].fillna(2.0)
    return {
        "model": printable(layer.model),
        "name": printable(layer.name),
        "depth": round(float(layer.depth), 4),
        "k": size,
        "size": sizes.index(size) if size in sizes else -1,
        "stride": layer.stride,
        "coverage": _round(known[0]) if known else None,
        "chance": _round(known[1]) if known else None,
        "keys": {
            name: {
                "serves": _bytes(_key_numbers(atlas, size, name, rows)),
                "r2": _bytes(_hundredths(rows[f"{name}_r2"].fillna(0.0))),
            }
            for name in KEY_SETS
        },
        "w": _bytes(_quantise(weight)),
        "pattern": _bytes(pattern.astype(np.uint8)),
        "classified": _bytes(rows["classified"].to_numpy(dtype=np.uint8)),
        "far": _bytes(_hundredths(far)),
        "channel": _bytes(rows["channel"].to_numpy(dtype="<u2")),
        "norm": _bytes(rows["norm"].to_numpy(dtype="<f4")),
        "mean": _bytes(rows["mean"].to_numpy(dtype="<f4")),
    }


def _coverage_by_layer(atlas: Atlas) -> dict[tuple[str, str], tuple[float, float]]:
    """Coverage of every layer, by model and name, and that of the strictest null."""
    table = atlas.coverage_[atlas.coverage_["level"] == "layer"]
    names = zip(table["model"], table["layer"], strict=True)
    found = zip(table["coverage"], table[list(NULLS)].max(axis=1), strict=True)
    return dict(reversed(list(zip(names, found, strict=True))))  # the first of equal names


def _hundredths(values: pd.Series) -> NDArray[np.uint8]:
    return np.clip(values.to_numpy(np.float64) * 100, 0, 255).round().astype(np.uint8)


def _key_numbers(
    atlas: Atlas, size: tuple[int, int], name: str, rows: pd.DataFrame
) -> NDArray[np.uint8]:
    """Number of the key that serves each filter, `NO_PATTERN` for none."""
    use = atlas.sizes_[size].keys.get(name) if size in atlas.sizes_ else None
    number = {} if use is None else {key: i for i, key in enumerate(use.keys.names)}
    return np.array([number.get(key, NO_PATTERN) for key in rows[f"{name}_key"]], dtype=np.uint8)


def _pack_keys(use: KeyUse, shown: _Shown) -> list[dict[str, Any]]:
    """Keys of one set as cards: the key, whom it serves, and those that it explains best."""
    cards = []
    for i, row in enumerate(use.table.itertuples()):
        served = np.flatnonzero(use.index[shown.own] == i)
        best = served[np.argsort(-use.r2[shown.own[served]], kind="stable")[:MEMBERS]]
        cards.append(
            {
                "label": row.key,
                "share": _round(row.share, 5),
                "r2": _round(row.r2),
                "key": _bytes(_quantise(use.keys.filters[i : i + 1])),
                "members": shown.place[best].tolist(),
            }
        )
    return cards


def _pack_size(atlas: SizeAtlas, shown: _Shown, generator: np.random.Generator) -> dict[str, Any]:
    patterns = atlas.patterns
    atoms = build_dictionary(atlas.size).atoms
    number = np.where(atlas.classified, patterns.index, -1)[shown.own]
    cards = []
    for i, row in enumerate(patterns.table.itertuples()):
        members = shown.place[number == i]
        if len(members) > MEMBERS:
            members = np.sort(generator.choice(members, MEMBERS, replace=False))
        cards.append(
            {
                "label": row.pattern,
                "name": row.name,
                "kind": row.kind,
                "formula": row.formula,
                "sigma": _round(row.sigma),
                "second": _round(row.second),
                "similarity": _round(row.similarity),
                "share": _round(row.share, 5),
                "filters": int(row.filters),
                "code": _round(row.code),
                "prototype": _bytes(_quantise(patterns.prototypes[i : i + 1])),
                "form": _bytes(_quantise(row.sign * atoms[row.atom][None])),
                "members": members.tolist(),
            }
        )
    count = len(atlas.decoded)
    drawn = np.linspace(0, count - 1, STRIP).round().astype(int)
    bins = np.searchsorted((drawn[1:] + drawn[:-1]) / 2, patterns.code * count)
    usage = np.zeros((len(drawn), len(patterns.table)), np.int64)
    np.add.at(usage, (bins, patterns.index), 1)
    at = np.where(usage.any(1), usage.argmax(1), -1)
    return {
        "k": atlas.size,
        "threshold": atlas.threshold,
        "patterns": cards,
        "strip": _bytes(_quantise(atlas.decoded[drawn])),
        "stripCode": [_round((c + 0.5) / count) for c in drawn],
        "stripUsage": usage.sum(1).tolist(),
        "stripPattern": at.tolist(),
        "keys": {name: _pack_keys(use, shown) for name, use in atlas.keys.items()},
        "models": None if atlas.matched is None else _pack_models(atlas.matched, atlas),
    }


def _pack_models(matched: Matched, atlas: SizeAtlas) -> dict[str, Any]:
    """Examples of every kind of model, learned filter beside model, and what is left over."""
    table = matched.table
    examples = []
    for kind in matched.shares["kind"]:
        ranked = table.loc[table["kind"] == kind, "r2"].sort_values(ascending=False).index
        for label, rows in (("best", ranked[:EXAMPLES]), ("worst", ranked[::-1][:EXAMPLES])):
            chosen = table.loc[rows]
            models = render_models(chosen, atlas.size)
            examples.append(
                {
                    "kind": kind,
                    "which": label,
                    "filters": _bytes(_quantise(_units(atlas, rows.to_numpy()))),
                    "models": _bytes(_quantise(models.reshape(len(rows), -1))),
                    "families": [formula_in(name, atlas.size) for name in chosen["family"]],
                    "r2": [_round(value, 2) for value in chosen["r2"]],
                    "sigmas": [
                        [_round(x, 2), _round(y, 2)]
                        for x, y in zip(chosen["sigma_x"], chosen["sigma_y"], strict=True)
                    ],
                }
            )
    left = np.concatenate([matched.residual[None], matched.components])
    return {"examples": examples, "left": _bytes(_scale(left.reshape(len(left), -1)))}


def _units(atlas: SizeAtlas, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the centred unit forms of some filters, in any order."""
    order = np.argsort(places)
    unit = np.empty((len(places), atlas.size[0] * atlas.size[1]), np.float32)
    unit[order] = centred_unit(atlas.filters[places[order]])
    return unit


def _scale(filters: NDArray[np.floating[Any]]) -> NDArray[np.int8]:
    """Scale the largest tap of each ``(taps,)`` row to 127, without centring."""
    largest = np.abs(filters).max(axis=1, keepdims=True)
    return (127 * filters / np.where(largest > 1e-12, largest, np.inf)).round().astype(np.int8)


def _quantise(filters: NDArray[np.floating[Any]]) -> NDArray[np.int8]:
    """Centre every filter and scale its largest tap to 127; NaN and dead filters become 0."""
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    flat = np.where(np.isfinite(flat).all(axis=1, keepdims=True), flat, 0.0)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return _scale(flat)


def _bytes(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _round(value: float, digits: int = 3) -> float | None:
    return None if not np.isfinite(value) else round(float(value), digits)

"""Two models side by side: which filters moved, how far, and what they became."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.inspection.comparison import Comparison
from keyfilters.inspection.pairing import Pairs, pair_filters, pair_table, same_layout
from keyfilters.inspection.pattern_change import (
    flow_table,
    layer_patterns,
    pattern_table,
    step_patterns,
    totals_table,
)
from keyfilters.nulls import NULLS
from keyfilters.scalespace import why_unusable
from keyfilters.sources import read
from keyfilters.threads import one_thread

__all__ = ["compare", "in_order"]

SAMPLE = 2000  # pairs of a kernel size whose receptive fields are matched


@one_thread()
def compare(
    a: Any,
    b: Any,
    *more: Any,
    seed: int = 0,
    sample: int = SAMPLE,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two models, or many steps of one, filter by filter.

    Models with the same layers are compared by position: quantised against float, before and after
    fine-tuning. Others are compared by relative depth and kernel size: each filter with the nearest
    one of the layer that corresponds. Each number stands beside that of nulls: of a change of equal
    size in a random direction, or of the nearest filter among as many without structure.

    Args:
        a: first model: a `FilterBank`, or what `keyfilters.read` takes.
        b: second model.
        more: further ones; the comparison is then that of the first with the last, and
            ``steps`` holds all on the way.
        seed: of the nulls, the sample, and models that are read without pretrained weights.
        sample: number of pairs of each kernel size whose receptive fields are matched, at most.
        progress: called with the name of each step before it starts.

    Returns:
        The comparison; ``verdict`` says it in one line.

    Raises:
        KeyFiltersError: a source cannot be read, nothing can be compared, or steps of a training
            that are not models of one layout.

    >>> from torch import nn
    >>> bank = read(nn.Conv2d(32, 32, 5, groups=32))
    >>> compare(bank, bank).verdict
    'All 32 filters are equal to the bit.'
    """
    silent = progress or (lambda step: None)
    banks = []
    for source in (a, b, *more):
        silent(f"reading {source if isinstance(source, str) else type(source).__name__}")
        banks.append(source if isinstance(source, FilterBank) else read(source, seed=seed))
    names = _names((a, b, *more), banks)
    if len(banks) > 2 and not all(same_layout(banks[0], bank) for bank in banks):
        raise KeyFiltersError(
            "more than two models were given, whose layers differ; give steps of one training, or "
            "compare two at a time"
        )
    found = _pair(banks[0], banks[-1], names[0], names[-1], seed, sample, silent)
    if len(banks) == 2:
        return found
    silent("steps")
    return Comparison(**(vars(found) | {"steps": _steps(banks, names, seed, sample)}))


def in_order(sources: list[str]) -> list[str]:
    """Order more than two names that differ in one number only by that number; else leave them.

    >>> in_order(["step-0.pth", "step-100.pth", "step-20.pth"])
    ['step-0.pth', 'step-20.pth', 'step-100.pth']
    >>> in_order(["b.pth", "a.pth"])
    ['b.pth', 'a.pth']
    """
    parts = [re.split(r"(\d+)", name) for name in sources]
    if len(sources) < 3 or len({len(x) for x in parts}) > 1:
        return sources
    differing = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(differing) != 1 or not differing[0] % 2:
        return sources
    return [
        x
        for _, x in sorted(
            (int(part[differing[0]]), x) for part, x in zip(parts, sources, strict=True)
        )
    ]


def _names(sources: tuple[Any, ...], banks: list[FilterBank]) -> list[str]:
    """Names of the sources that differ: of the model, else as given, else numbered."""
    names = [
        bank.models[0] if len(bank.models) == 1 else f"{len(bank.models)} models" for bank in banks
    ]
    names = [
        source if names.count(name) > 1 and isinstance(source, str) else name
        for source, name in zip(sources, names, strict=True)
    ]
    return [
        f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _pair(
    a: FilterBank,
    b: FilterBank,
    name_a: str,
    name_b: str,
    seed: int,
    sample: int,
    progress: Callable[[str], None],
) -> Comparison:
    progress("pairs and nulls")
    by_position = same_layout(a, b)
    pairs = list(pair_filters(a, b, seed))
    if not sum(len(p.a) for p in pairs):
        raise KeyFiltersError("no pair of filters that both have a shape; nothing to compare")
    tables = [pair_table(p) for p in pairs]
    filters = pd.concat([table for table in tables if len(table)], ignore_index=True)
    progress("receptive fields")
    patterns = pattern_table(pairs, seed, sample)
    return Comparison(
        a=name_a,
        b=name_b,
        how="position" if by_position else "depth",
        filters=filters,
        layers=_layers(pairs, tables).join(layer_patterns(patterns, len(pairs))),
        patterns=patterns,
        flow=flow_table(patterns),
        totals=totals_table(filters, patterns, by_position),
        counts=_counts(a, b, by_position),
        steps=None,
        most_changed=_most_changed(pairs, filters),
    )


def _counts(a: FilterBank, b: FilterBank, by_position: bool) -> dict[str, int]:
    """Number of filters of either, and of those that lost or gained a shape."""
    counts = {"a": len(a), "b": len(b)}
    if by_position:
        before, after = (
            np.concatenate([why_unusable(layer.weight) == "" for layer in bank.layers])
            for bank in (a, b)
        )
        counts |= {"lost": int((before & ~after).sum()), "gained": int((~before & after).sum())}
    return counts


def _layers(pairs: list[Pairs], tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row a layer: how far its filters moved; NaN where no pair of them has a shape."""
    rows = []
    for pair, part in zip(pairs, tables, strict=True):
        nulls = {kind: part[f"cosine, {kind}"].median() for kind in NULLS}
        strictest = max(nulls, key=lambda kind: nulls[kind])
        rows.append(
            {
                "layer": pair.layer_a.name,
                "layer_b": pair.layer_b.name,
                "depth": pair.layer_a.depth,
                "size": "{}×{}".format(*pair.layer_a.size),
                "pairs": len(part),
                "untouched": part["untouched"].mean(),
                "cosine": part["cosine"].median(),
                "null": nulls[strictest],
                "strictest": strictest,
                "norm_ratio": part["norm_ratio"].median(),
                "change": part["change"].median(),
                "flipped": (part["cosine"] < 0).mean(),
            }
        )
    return pd.DataFrame(rows)


def _most_changed(
    pairs: list[Pairs], filters: pd.DataFrame, count: int = 24
) -> list[dict[str, Any]]:
    """The pairs that differ most in shape, both filters included."""
    start = np.cumsum([0, *(len(p.a) for p in pairs)])
    chosen = []
    for i in filters["cosine"].sort_values(kind="stable").index[:count]:
        if filters["untouched"][i]:
            continue
        number = int(np.searchsorted(start, i, side="right")) - 1
        row = filters.loc[i, ["layer", "layer_b", "channel", "channel_b", "cosine", "norm_ratio"]]
        j = i - start[number]
        chosen.append({**row.to_dict(), "a": pairs[number].a[j], "b": pairs[number].b[j]})
    return chosen


def _steps(banks: list[FilterBank], names: list[str], seed: int, sample: int) -> pd.DataFrame:
    """One row a step: its distance from the first and from the one before, and its patterns."""
    rows = []
    for i, (bank, name) in enumerate(zip(banks, names, strict=True)):
        row: dict[str, Any] = {"step": i, "name": name}
        for what, other in (("first", banks[0]), ("one before", banks[max(i - 1, 0)])):
            cosines, untouched = _distance(other, bank)
            row |= {f"cosine to the {what}": cosines, f"untouched since the {what}": untouched}
        norms = np.concatenate([np.linalg.norm(x.weight, axis=(1, 2)) for x in bank.layers])
        row["median norm"] = float(np.median(norms))
        rows.append(row | step_patterns(bank, seed, sample))
    return pd.DataFrame(rows)


def _distance(a: FilterBank, b: FilterBank) -> tuple[float, float]:
    tables, usable = [], []
    for x, y in zip(a.layers, b.layers, strict=True):
        rows = np.flatnonzero(np.isfinite(x.weight).all((1, 2)) & np.isfinite(y.weight).all((1, 2)))
        first, second = (z.weight[rows].astype(np.float64) for z in (x, y))
        tables.append(pair_table(Pairs(x, y, rows, rows, first, second, {})))
        usable.append((why_unusable(first) == "") & (why_unusable(second) == ""))
    table = pd.concat(tables, ignore_index=True)
    shown = table["cosine"][np.concatenate(usable)]  # a filter without a shape has no direction
    return float(shown.median()), float(table["untouched"].mean())

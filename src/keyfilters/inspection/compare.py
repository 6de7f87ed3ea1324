"""Two models side by side: which filters moved, how far, and what they became."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.inspection.comparison import Comparison
from keyfilters.inspection.forms import EXPLAINED, UNEXPLAINED, forms, has_forms
from keyfilters.inspection.pairing import Pairs, pair_filters, pair_table, same_layout
from keyfilters.nulls import NULLS
from keyfilters.scalespace import why_unusable
from keyfilters.seeds import child_seed
from keyfilters.sources import read
from keyfilters.threads import one_thread

__all__ = ["compare"]

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
    return Comparison(**(vars(found) | {"steps": _steps(banks, names)}))


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
    patterns = _patterns(pairs, seed, sample)
    return Comparison(
        a=name_a,
        b=name_b,
        how="position" if by_position else "depth",
        filters=filters,
        layers=_layers(pairs, tables),
        patterns=patterns,
        flow=_flow(patterns),
        totals=_totals(filters, patterns),
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
    """One row a layer, see `Comparison`; NaN where no pair of filters has a shape."""
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


def _patterns(pairs: list[Pairs], seed: int, sample: int) -> pd.DataFrame:
    """Receptive fields of a sample of the pairs and of their nulls.

    Columns: size, and pattern, r2 and sigma of ``a``, ``b`` and each null, as ``"pattern, a"``.
    """
    parts = []
    for size in dict.fromkeys(p.layer_a.size for p in pairs):
        of_size = [p for p in pairs if p.layer_a.size == size]
        count = sum(len(p.a) for p in of_size)
        if not has_forms(size) or not count:
            continue
        rng = np.random.default_rng(child_seed(seed, "compare", *size))
        rows = np.sort(rng.permutation(count)[:sample])
        stacks = {
            "a": np.concatenate([p.a for p in of_size])[rows],
            "b": np.concatenate([p.b for p in of_size])[rows],
        } | {kind: np.concatenate([p.nulls[kind] for p in of_size])[rows] for kind in NULLS}
        found = forms(np.concatenate(list(stacks.values())))  # one call: part of its cost is fixed
        table = pd.DataFrame({"size": "{}×{}".format(*size)}, index=range(len(rows)))
        for i, key in enumerate(stacks):
            part = found.iloc[i * len(rows) : (i + 1) * len(rows)].reset_index(drop=True)
            table = table.join(part.add_suffix(f", {key}"))
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _flow(patterns: pd.DataFrame) -> pd.DataFrame:
    """How often each pattern became which: share of pairs, and of each null, the most first."""
    if patterns.empty:
        return pd.DataFrame(columns=["from", "to", "share", *NULLS])
    columns = {"share": "b"} | {kind: kind for kind in NULLS}
    shares = {
        name: patterns.groupby(["pattern, a", f"pattern, {key}"]).size() / len(patterns)
        for name, key in columns.items()
    }
    for part in shares.values():
        part.index.names = ["from", "to"]
    table = pd.DataFrame(shares).fillna(0.0).reset_index()
    return table.sort_values("share", ascending=False, ignore_index=True)


def _totals(filters: pd.DataFrame, patterns: pd.DataFrame) -> pd.DataFrame:
    """One row a measure: a (of the first model, where it has one), b, each null, strictest."""
    rows: list[dict[str, Any]] = []

    def enter(measure: str, values: dict[str, float], strictest: str = "") -> None:
        strictest = strictest or max(NULLS, key=lambda kind: values[kind])
        rows.append({"measure": measure, "a": np.nan, **values, "strictest": strictest})

    cosine = {kind: float(filters[f"cosine, {kind}"].median()) for kind in NULLS}
    enter("median cosine", {"b": float(filters["cosine"].median()), **cosine})
    if patterns.empty:
        return pd.DataFrame(rows)
    pattern = {key: patterns[f"pattern, {key}"] for key in ("a", "b", *NULLS)}
    kept = {key: float((pattern[key] == pattern["a"]).mean()) for key in ("b", *NULLS)}
    enter("same pattern", kept)
    covered = {key: float((x != UNEXPLAINED).mean()) for key, x in pattern.items()}
    enter(f"explained, r² ≥ {EXPLAINED}", covered)
    sigma = {
        key: float(patterns[f"sigma, {key}"][pattern[key] != UNEXPLAINED].median())
        for key in pattern
    }
    nearest = min(NULLS, key=lambda kind: abs(sigma[kind] - sigma["b"]))
    enter("median σ of those explained, taps", sigma, nearest)
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


def _steps(banks: list[FilterBank], names: list[str]) -> pd.DataFrame:
    """One row a step: its distance from the first and from the one before."""
    rows = []
    for i, (bank, name) in enumerate(zip(banks, names, strict=True)):
        row: dict[str, Any] = {"step": i, "name": name}
        for what, other in (("first", banks[0]), ("before", banks[max(i - 1, 0)])):
            cosines, untouched = _distance(other, bank)
            row |= {f"cosine to the {what}": cosines, f"untouched since the {what}": untouched}
        norms = np.concatenate([np.linalg.norm(x.weight, axis=(1, 2)) for x in bank.layers])
        row["median norm"] = float(np.median(norms))
        rows.append(row)
    return pd.DataFrame(rows)


def _distance(a: FilterBank, b: FilterBank) -> tuple[float, float]:
    tables = []
    for x, y in zip(a.layers, b.layers, strict=True):
        rows = np.flatnonzero(np.isfinite(x.weight).all((1, 2)) & np.isfinite(y.weight).all((1, 2)))
        first, second = (z.weight[rows].astype(np.float64) for z in (x, y))
        tables.append(pair_table(Pairs(x, y, rows, rows, first, second, {})))
    table = pd.concat(tables, ignore_index=True)
    return float(table["cosine"].median()), float(table["untouched"].mean())

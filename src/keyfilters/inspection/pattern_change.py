"""Which patterns became which, and what became of coverage and scale: tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.bank import FilterBank
from keyfilters.inspection.forms import EXPLAINED, UNEXPLAINED, forms, has_forms
from keyfilters.inspection.pairing import Pairs
from keyfilters.nulls import NULLS, null_bank
from keyfilters.scalespace import why_unusable
from keyfilters.seeds import child_seed

__all__ = ["flow_table", "layer_patterns", "pattern_table", "step_patterns", "totals_table"]

STRICT = ("covariance", "phase")  # the nulls that tell structure from smoothness


def pattern_table(pairs: Sequence[Pairs], seed: int, sample: int) -> pd.DataFrame:
    """Receptive fields of a sample of the pairs and of their nulls.

    Args:
        pairs: of all layers.
        seed: of the sample.
        sample: number of pairs of a kernel size, at most.

    Returns:
        One row a pair: number (of its layer in `pairs`), size, and pattern, r2 and sigma of ``a``,
        ``b`` and each null, as ``"pattern, a"``. Empty where no window has receptive fields.
    """
    parts = []
    for size in dict.fromkeys(p.layer_a.size for p in pairs):
        numbers = [i for i, p in enumerate(pairs) if p.layer_a.size == size]
        of_size = [pairs[i] for i in numbers]
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
        number = np.repeat(numbers, [len(p.a) for p in of_size])[rows]
        table = pd.DataFrame({"number": number, "size": "{}×{}".format(*size)})
        for i, key in enumerate(stacks):
            part = found.iloc[i * len(rows) : (i + 1) * len(rows)].reset_index(drop=True)
            table = table.join(part.add_suffix(f", {key}"))
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def layer_patterns(patterns: pd.DataFrame, layers: int) -> pd.DataFrame:
    """One row a layer: coverage and scale of both models, the last columns of `Comparison.layers`.

    Args:
        patterns: of `pattern_table`.
        layers: number of layers; those without a pair in the sample have NaN.
    """
    columns = ("explained_a", "explained_b", "explained_null", "sigma_a", "sigma_b")
    rows: list[dict[str, float]] = [dict.fromkeys(columns, np.nan) for _ in range(layers)]
    for number, part in patterns.groupby("number") if len(patterns) else ():
        row = rows[int(number)]
        for side in ("a", "b"):
            covered, sigma = _covered(part, side)
            row |= {f"explained_{side}": covered, f"sigma_{side}": sigma}
        row["explained_null"] = max(_covered(part, kind)[0] for kind in NULLS)
    return pd.DataFrame(rows, columns=list(columns))


def _covered(patterns: pd.DataFrame, key: str) -> tuple[float, float]:
    """Share of filters that are explained, and their median scale in taps."""
    explained = patterns[f"pattern, {key}"] != UNEXPLAINED
    return float(explained.mean()), float(patterns[f"sigma, {key}"][explained].median())


def flow_table(patterns: pd.DataFrame) -> pd.DataFrame:
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


def totals_table(filters: pd.DataFrame, patterns: pd.DataFrame, by_position: bool) -> pd.DataFrame:
    """One row a measure: a (of the first model, where it has one), b, each null, strictest.

    Args:
        filters: one row a pair, of all layers.
        patterns: of `pattern_table`.
        by_position: whether a filter may have turned around; nearest ones have the sign that fits.
    """
    rows: list[dict[str, Any]] = []

    def enter(measure: str, values: dict[str, float], strictest: str = "") -> None:
        strictest = strictest or max(NULLS, key=lambda kind: values[kind])
        rows.append({"measure": measure, "a": np.nan, **values, "strictest": strictest})

    def nearest(values: dict[str, float]) -> str:
        return min(NULLS, key=lambda kind: abs(values[kind] - values["b"]))

    columns = {"b": "", **{kind: f", {kind}" for kind in NULLS}}
    enter("median cosine", {k: float(filters[f"cosine{x}"].median()) for k, x in columns.items()})
    if by_position:
        turned = {k: float((filters[f"cosine{x}"] < 0).mean()) for k, x in columns.items()}
        enter("turned around", turned, nearest(turned))
    ratio = {k: float(filters[f"norm_ratio{x}"].median()) for k, x in columns.items()}
    enter("median norm ratio", ratio, nearest(ratio))
    if patterns.empty:
        return pd.DataFrame(rows)
    pattern = {key: patterns[f"pattern, {key}"] for key in ("a", "b", *NULLS)}
    enter("same pattern", {k: float((pattern[k] == pattern["a"]).mean()) for k in columns})
    covered = {key: _covered(patterns, key) for key in pattern}
    enter(f"explained, r² ≥ {EXPLAINED}", {key: share for key, (share, _) in covered.items()})
    sigma = {key: scale for key, (_, scale) in covered.items()}
    enter("median σ of those explained, taps", sigma, nearest(sigma))
    return pd.DataFrame(rows)


def step_patterns(bank: FilterBank, seed: int, sample: int) -> dict[str, float]:
    """Share explained, the same of null filters, and median σ (taps) of one step of a training.

    Args:
        bank: the filters of the step.
        seed: of the sample, which is that of all steps, and of the nulls.
        sample: number of filters of a kernel size that are matched, at most.

    Returns:
        explained, chance (the larger of the covariance and phase nulls) and sigma; NaN where no
        window has receptive fields.
    """
    banks = {"a": bank} | {kind: null_bank(bank, kind, seed) for kind in STRICT}
    found: dict[str, list[pd.DataFrame]] = {key: [] for key in banks}
    for size in filter(has_forms, bank.sizes):
        rng = np.random.default_rng(child_seed(seed, "compare", *size))
        rows = rng.permutation(bank.sizes[size])[:sample]
        usable = rows[why_unusable(bank.stack(size)[0][rows]) == ""]
        for key, other in banks.items():
            if len(usable):
                found[key].append(forms(other.stack(size)[0][usable]))
    if not found["a"]:
        return dict.fromkeys(("explained", "chance", "sigma"), np.nan)
    tables = {key: pd.concat(parts).add_suffix(f", {key}") for key, parts in found.items()}
    share, sigma = _covered(tables["a"], "a")
    chance = max(_covered(tables[kind], kind)[0] for kind in STRICT)
    return {"explained": share, "chance": chance, "sigma": sigma}

"""The atlas of a bank: every filter's pattern, and every claim beside its null model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.claims import FILTERS, Claim, claims_table, halves
from keyfilters.clusters.agreement import pattern_agreement
from keyfilters.clusters.config import AtlasConfig
from keyfilters.clusters.evidence import STEPS, Evidence, gather_evidence
from keyfilters.clusters.explained import NULL_SAMPLE, Explained, explain
from keyfilters.clusters.key_use import KeyUse, explained_by_keys, known_keys
from keyfilters.clusters.methods import ONE_DIMENSION, Fitted
from keyfilters.clusters.patterns import Patterns, find_patterns
from keyfilters.clusters.prototypes import PrototypeSet
from keyfilters.clusters.squares import square_report
from keyfilters.clusters.summary import summarise
from keyfilters.clusters.words import in_words
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.nulls import NULLS, null_units
from keyfilters.scalespace import centred_unit
from keyfilters.seeds import child_seed
from keyfilters.threads import one_thread

__all__ = ["Atlas", "SizeAtlas"]

Progress = Callable[[str], None]

MODEL_COLUMNS = (
    "family",
    "sigma_x",
    "sigma_y",
    "second",
    "angle",
    "amplitude",
    "offset",
    "r2",
    "p",
    "q",
)
KEY_COLUMNS = ("published_key", "published_r2", "consensus_key", "consensus_r2")


@dataclass(frozen=True, eq=False)
class SizeAtlas:
    """The atlas of one kernel size.

    Attributes:
        size: ``(k_y, k_x)``.
        threshold: dissimilarity below which a filter counts as classified.
        rows: ``(n,)`` index of its usable filters in the atlas's table.
        unit: ``(n, taps)`` their centred unit forms.
        decoded: ``(G, taps)`` filters that the 1-D code of the first seed decodes to.
        patterns: see `Patterns`.
        evidence: see `Evidence`.
        agreement: one row a data set (the filters, then each null), see `pattern_agreement`.
        squares: see `square_report`.
        explained: see `Explained`; None for windows with an even side or a single row or column.
        keys: how the published and the consensus keys explain the filters, where there are such.
        claims: all claims, each beside its nulls.
    """

    size: tuple[int, int]
    threshold: float
    rows: NDArray[np.int64]
    unit: NDArray[np.float32]
    decoded: NDArray[np.float32]
    patterns: Patterns
    evidence: Evidence
    agreement: pd.DataFrame
    squares: dict[str, Any]
    explained: Explained | None
    keys: dict[str, KeyUse]
    claims: list[Claim]


class Atlas:
    """Unsupervised patterns of a bank's filters, named, and measured against chance.

    Args:
        seed: of everything random.
        config: further fields of `AtlasConfig`.

    Attributes:
        bank_: the bank.
        table_: one row a filter, in the order of ``bank.layers``: model, layer, depth, channel,
            k_y, k_x, stride (the larger of two; NaN where unknown), norm, mean, flaw (why it is not
            usable, or empty), pattern, name (variants of a pattern not told apart), kind (coarse
            group of names), code in (0, 1), dissimilarity to what the code decodes to, classified;
            the idealised receptive field: family, sigma_x, sigma_y, second, amplitude, offset, r2,
            p and q as in `keyfilters.match`, against filters of the same tap covariance; and the
            published and the consensus key that explain most of it, with the share r2.
        sizes_: a `SizeAtlas` for every kernel size with enough usable filters.
        unclustered_: kernel sizes without, and why.
        coverage_: one row a bank, model and layer, and kernel size: level, size, model, layer,
            depth, filters (usable), coverage (share classified), and the same of each null, whose
            filters are classified by a code fitted to them.
        claims_: one row a claim of a kernel size, see `keyfilters.claims.claims_table`, and q, its
            false-discovery rate over all claims of the atlas.
        words_: the claims in sentences, by kernel size, see `keyfilters.clusters.words`.
        summary_: all figures as plain data, as they are saved.

    >>> import keyfilters as kf, torch
    >>> bank = kf.read(torch.nn.Conv2d(256, 256, 5, groups=256))
    >>> atlas = kf.Atlas(seed=0, seeds=2).fit(bank)
    >>> list(atlas.sizes_)
    [(5, 5)]
    """

    def __init__(self, seed: int = 0, **config: Any) -> None:
        known = AtlasConfig.__dataclass_fields__
        unknown = [key for key in config if key not in known]
        if unknown:
            raise KeyFiltersError(
                f"unknown setting {unknown[0]!r} of the atlas; the settings are {', '.join(known)}"
            )
        self.config = AtlasConfig(seed=seed, **config)

    def fit(self, bank: FilterBank, progress: Progress | None = None) -> Atlas:
        """Cluster, name and measure all filters of a bank.

        Args:
            bank: the filters.
            progress: called with the name of each step before it starts.

        Raises:
            NoFiltersError: no kernel size has enough usable filters.
        """
        started = time.perf_counter()
        progress = progress or (lambda step: None)
        self.bank_ = bank
        self.table_ = _empty_table(bank)
        self.sizes_: dict[tuple[int, int], SizeAtlas] = {}
        self._nulls: dict[tuple[int, int], dict[str, NDArray[np.bool_]]] = {}
        self.unclustered_: dict[tuple[int, int], str] = {}
        for size in bank.sizes:
            self._fit_size(size, progress)
        if not self.sizes_:
            reasons = "; ".join(f"{y}×{x}: {why}" for (y, x), why in self.unclustered_.items())
            raise NoFiltersError(f"not enough filters for an atlas ({reasons or 'an empty bank'})")
        self.coverage_ = self._coverage()
        self.claims_ = self._claims()
        self.words_ = {
            size: in_words(
                self.claims_[self.claims_["size"] == _label(size)], _label(size), a.threshold
            )
            for size, a in self.sizes_.items()
        }
        self.summary_ = summarise(self, time.perf_counter() - started)
        return self

    def __repr__(self) -> str:
        if not hasattr(self, "table_"):
            return f"Atlas({self.config})"
        sizes = ", ".join(
            f"{_label(size)}: {len(a.patterns.table)} patterns" for size, a in self.sizes_.items()
        )
        return f"Atlas({len(self.table_):,} filters; {sizes})"

    def _repr_html_(self) -> str:
        """Show the patterns and every claim beside its strictest null, for a notebook."""
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        if not hasattr(self, "table_"):
            return f"<p>{escape(repr(self))}; not fitted yet: fit(bank)</p>"
        parts = [f"<p>{escape(repr(self))}</p>"]
        for size, one in self.sizes_.items():
            prototypes = one.patterns.prototypes.reshape(-1, *size)
            parts.append(f"<p>{_label(size)}</p>{contact_sheet(prototypes, 16, 36)}")
        return "".join(parts) + self.claims_.to_html(index=False, float_format="{:.3f}".format)

    def steps(self, bank: FilterBank) -> int:
        """Number of times that `fit` will call its progress function for a bank, at most."""
        return (STEPS + 4) * len(bank.sizes)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``filters.parquet``, ``summary.json`` and ``bank.safetensors`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.table_.to_parquet(folder / "filters.parquet", index=False)
        text = json.dumps(self.summary_, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        self.bank_.save(folder / "bank.safetensors")

    @one_thread()
    def _fit_size(self, size: tuple[int, int], progress: Progress) -> None:
        of_size = (self.table_["k_y"] == size[0]) & (self.table_["k_x"] == size[1])
        rows = np.flatnonzero(of_size & (self.table_["flaw"] == ""))
        if len(rows) < self.config.fewest:
            self.unclustered_[size] = f"{len(rows)} usable filters, fewer than {self.config.fewest}"
            return
        kernel = _label(size)
        threshold = self.config.threshold_of(size)
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        filters, table = self.bank_.stack(size)
        usable = (table["flaw"] == "").to_numpy()
        unit = centred_unit(filters[usable])
        chosen = self._sample(len(unit))
        progress(f"{kernel}: null filters")
        nulls = {kind: null_units(unit, size, kind, self.config.seed) for kind in NULLS}
        data = {FILTERS: unit[chosen]} | {kind: null[chosen] for kind, null in nulls.items()}
        evidence = gather_evidence(
            data,
            size,
            threshold,
            seeds,
            [count for count in self.config.counts if count <= len(chosen) // 4],
            halves(table[usable].iloc[chosen]),
            feed_forward=self.config.feed_forward,
            device=self.config.device,
            progress=lambda step: progress(f"{kernel}: {step}"),
        )
        progress(f"{kernel}: agreement")
        codes = {key: _prototypes(found) for key, found in evidence.fits[ONE_DIMENSION].items()}
        agreement = pd.DataFrame(
            {
                key: pattern_agreement(codes[key], seeds[: len(codes[key])], part, threshold)
                for key, part in data.items()
            }
        ).T
        progress(f"{kernel}: patterns")
        decoded = codes[FILTERS][0].prototypes
        patterns = find_patterns(decoded, unit, size, threshold)
        keys = {
            name: explained_by_keys(name, known, {FILTERS: unit} | nulls)
            for name, known in known_keys(size).items()
        }
        progress(f"{kernel}: idealised receptive field of every filter")
        explained = self._explain(filters[usable], nulls, threshold)
        self.sizes_[size] = SizeAtlas(
            size=size,
            threshold=threshold,
            rows=rows,
            unit=unit,
            decoded=decoded,
            patterns=patterns,
            evidence=evidence,
            agreement=agreement,
            squares=square_report(unit, self.table_.iloc[rows], size, threshold),
            explained=explained,
            keys=keys,
            claims=[
                *evidence.claims,
                *([explained.claim] if explained is not None else []),
                *(use.claim for use in keys.values()),
            ],
        )
        self._nulls[size] = {
            kind: codes[kind][0].dissimilarity(null) < threshold for kind, null in nulls.items()
        }
        self._enter(rows, patterns, threshold, explained, keys)

    def _explain(
        self,
        filters: NDArray[np.float32],
        nulls: dict[str, NDArray[np.float32]],
        threshold: float,
    ) -> Explained | None:
        """Match the filters and some of each null, where the window has a centre tap."""
        if min(filters.shape[1:]) < 3 or any(side % 2 == 0 for side in filters.shape[1:]):
            return None
        generator = np.random.default_rng(child_seed(self.config.seed, "matched"))
        some = np.sort(generator.permutation(len(filters))[:NULL_SAMPLE])
        samples = {kind: null[some] for kind, null in nulls.items()}
        return explain(filters, samples, threshold, self.config.device)

    def _sample(self, count: int) -> NDArray[np.int64]:
        if count <= self.config.sample:
            return np.arange(count)
        generator = np.random.default_rng(child_seed(self.config.seed, "sample"))
        return np.sort(generator.choice(count, self.config.sample, replace=False))

    def _enter(
        self,
        rows: NDArray[np.int64],
        patterns: Patterns,
        threshold: float,
        explained: Explained | None,
        keys: dict[str, KeyUse],
    ) -> None:
        columns: dict[str, Any] = {
            "pattern": patterns.table["pattern"].to_numpy()[patterns.index],
            "name": patterns.table["name"].to_numpy()[patterns.index],
            "kind": patterns.table["kind"].to_numpy()[patterns.index],
            "code": patterns.code,
            "dissimilarity": patterns.dissimilarity,
            "classified": patterns.dissimilarity < threshold,
        }
        if explained is not None:
            columns |= {name: explained.table[name].to_numpy() for name in MODEL_COLUMNS}
        for name, use in keys.items():
            columns[f"{name}_key"] = np.array(use.keys.names, dtype=object)[use.index]
            columns[f"{name}_r2"] = use.r2
        for column, values in columns.items():
            self.table_.iloc[rows, self.table_.columns.get_loc(column)] = values

    def _coverage(self) -> pd.DataFrame:
        parts = []
        for size, atlas in self.sizes_.items():
            table = self.table_.iloc[atlas.rows][["model", "layer", "depth", "classified"]].copy()
            table = table.assign(**self._nulls[size])
            for level, keys in (
                ("bank", []),
                ("model", ["model"]),
                ("layer", ["model", "layer", "depth"]),
            ):
                groups = table.groupby(keys or (lambda _: 0), sort=False)
                part = (
                    groups[["classified", *NULLS]].mean().rename(columns={"classified": "coverage"})
                )
                part.insert(0, "filters", groups.size())
                part = part.reset_index(drop=not keys)
                parts.append(part.assign(level=level, size=_label(size)))
        columns = ["level", "size", "model", "layer", "depth", "filters", "coverage", *NULLS]
        return pd.concat(parts, ignore_index=True).reindex(columns=columns)

    def _claims(self) -> pd.DataFrame:
        """All claims of the atlas, so that together at most one page in twenty claims falsely."""
        from scipy.stats import false_discovery_control

        parts = [claims_table(a.claims).assign(size=_label(s)) for s, a in self.sizes_.items()]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "size", table.pop("size"))
        return table.assign(q=false_discovery_control(table["p"]))


def _label(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _prototypes(fitted: list[Fitted]) -> list[PrototypeSet]:
    return [found for found in fitted if isinstance(found, PrototypeSet)]


def _empty_table(bank: FilterBank) -> pd.DataFrame:
    """One row a filter in the order of the layers, not yet assigned to patterns."""
    parts = []
    for layer in bank.layers:
        _, table = FilterBank([layer]).stack(layer.size)
        stride = float(max(layer.stride)) if layer.stride else np.nan
        parts.append(table.assign(k_y=layer.size[0], k_x=layer.size[1], stride=stride))
    columns = ["model", "layer", "depth", "channel", "k_y", "k_x", "stride", "norm", "mean", "flaw"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table[columns].assign(
        pattern="",
        name="",
        kind="",
        code=np.nan,
        dissimilarity=np.nan,
        classified=False,
        **dict.fromkeys((*MODEL_COLUMNS, *KEY_COLUMNS), np.nan)
        | {"family": "", "published_key": "", "consensus_key": ""},
    )

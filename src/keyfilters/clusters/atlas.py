"""The atlas of a bank: every filter's pattern, and every claim beside its null model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
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
from keyfilters.clusters.key_use import KeyUse, known_keys, measure_keys
from keyfilters.clusters.matched import NULL_SAMPLE, Matched, match_filters
from keyfilters.clusters.methods import ONE_DIMENSION, Fitted
from keyfilters.clusters.patterns import Patterns, find_patterns
from keyfilters.clusters.prototypes import PrototypeSet
from keyfilters.clusters.sentences import in_words
from keyfilters.clusters.square_or_shifted import square_report
from keyfilters.clusters.summary import summarise
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.files import write_whole
from keyfilters.nulls import NULLS, null_units
from keyfilters.receptive_fields import has_models
from keyfilters.scalespace import centred_unit
from keyfilters.seeds import child_seed
from keyfilters.threads import one_thread

__all__ = ["Atlas", "SizeAtlas"]

Progress = Callable[[str], None]

MODEL_COLUMNS = ("family", "sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2",
                 "p", "q")  # fmt: skip
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
        matched: see `Matched`; None for windows of less than 3 taps along both sides.
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
    matched: Matched | None
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
        words_: the claims in sentences, by kernel size, see `keyfilters.clusters.sentences`.
        summary_: all figures as plain data, as they are saved.

    >>> import keyfilters as kf, torch
    >>> bank = kf.read(torch.nn.Conv2d(256, 256, 5, groups=256))
    >>> atlas = kf.Atlas(seed=0, seeds=1).fit(bank)
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
        """Write ``filters.parquet``, ``summary.json`` and ``bank.safetensors`` into a folder.

        Every file is at any moment the old or the new one.
        """
        folder = Path(folder)
        table = BytesIO()
        self.table_.to_parquet(table, index=False)
        write_whole(folder / "filters.parquet", table.getvalue())
        text = json.dumps(self.summary_, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(folder / "summary.json", text + "\n")
        self.bank_.save(folder / "bank.safetensors")

    @one_thread()
    def _fit_size(self, size: tuple[int, int], progress: Progress) -> None:
        of_size = (self.table_["k_y"] == size[0]) & (self.table_["k_x"] == size[1])
        rows = np.flatnonzero(of_size & (self.table_["flaw"] == ""))
        if len(rows) < self.config.fewest:
            self.unclustered_[size] = f"{len(rows)} usable filters, fewer than {self.config.fewest}"
            return
        kernel, threshold = _label(size), self.config.threshold_of(size)
        filters, table = self.bank_.stack(size)
        usable = (table["flaw"] == "").to_numpy()
        filters, table = filters[usable], table[usable]
        unit = centred_unit(filters)
        progress(f"{kernel}: null filters")
        nulls = {kind: null_units(unit, size, kind, self.config.seed) for kind in NULLS}
        evidence, agreement = self._gather(unit, nulls, size, halves(table), progress)
        codes = {key: _prototypes(found) for key, found in evidence.fits[ONE_DIMENSION].items()}
        progress(f"{kernel}: patterns")
        decoded = codes[FILTERS][0].prototypes
        patterns = find_patterns(decoded, unit, size, threshold)
        keys = {
            name: measure_keys(name, known, {FILTERS: unit} | nulls)
            for name, known in known_keys(size).items()
        }
        progress(f"{kernel}: idealised receptive field of every filter")
        matched = self._match(filters, nulls, threshold)
        self.sizes_[size] = SizeAtlas(
            size, threshold, rows, unit, decoded, patterns, evidence, agreement,
            square_report(unit, self.table_.iloc[rows], size, threshold), matched, keys,
            [
                *evidence.claims,
                *([matched.claim] if matched is not None else []),
                *(use.claim for use in keys.values()),
            ],
        )  # fmt: skip
        self._nulls[size] = {
            kind: codes[kind][0].dissimilarity(null) < threshold for kind, null in nulls.items()
        }
        self._enter(self.sizes_[size])

    def _gather(
        self,
        unit: NDArray[np.float32],
        nulls: dict[str, NDArray[np.float32]],
        size: tuple[int, int],
        half: NDArray[np.bool_],
        progress: Progress,
    ) -> tuple[Evidence, pd.DataFrame]:
        """Coverage of all methods, and agreement of their patterns, on a sample if it is large."""
        kernel, threshold = _label(size), self.config.threshold_of(size)
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        chosen = self._sample(len(unit), self.config.sample, "sample")
        data = {key: part[chosen] for key, part in ({FILTERS: unit} | nulls).items()}
        evidence = gather_evidence(
            data,
            size,
            threshold,
            seeds,
            [count for count in self.config.counts if count <= len(chosen) // 4],
            half[chosen],
            feed_forward=self.config.feed_forward,
            device=self.config.device,
            progress=lambda step: progress(f"{kernel}: {step}"),
        )
        progress(f"{kernel}: agreement")
        codes = {key: _prototypes(found) for key, found in evidence.fits[ONE_DIMENSION].items()}
        agreement = {
            key: pattern_agreement(codes[key], seeds[: len(codes[key])], part, threshold)
            for key, part in data.items()
        }
        return evidence, pd.DataFrame(agreement).T

    def _match(
        self,
        filters: NDArray[np.float32],
        nulls: dict[str, NDArray[np.float32]],
        threshold: float,
    ) -> Matched | None:
        """Match the filters and some of each null, where the window has idealised models."""
        if not has_models((filters.shape[1], filters.shape[2])):
            return None
        some = self._sample(len(filters), NULL_SAMPLE, "matched")
        samples = {kind: null[some] for kind, null in nulls.items()}
        return match_filters(filters, samples, threshold, self.config.device)

    def _sample(self, count: int, most: int, purpose: str) -> NDArray[np.int64]:
        if count <= most:
            return np.arange(count)
        generator = np.random.default_rng(child_seed(self.config.seed, purpose))
        return np.sort(generator.choice(count, most, replace=False))

    def _enter(self, atlas: SizeAtlas) -> None:
        """Write what was found for one kernel size into the table of all filters."""
        patterns = atlas.patterns
        columns: dict[str, Any] = {
            name: patterns.table[name].to_numpy()[patterns.index]
            for name in ("pattern", "name", "kind")
        } | {
            "code": patterns.code,
            "dissimilarity": patterns.dissimilarity,
            "classified": patterns.dissimilarity < atlas.threshold,
        }
        if atlas.matched is not None:
            columns |= {name: atlas.matched.table[name].to_numpy() for name in MODEL_COLUMNS}
        for name, use in atlas.keys.items():
            columns[f"{name}_key"] = np.array(use.keys.names, dtype=object)[use.index]
            columns[f"{name}_r2"] = use.r2
        for column, values in columns.items():
            self.table_.iloc[atlas.rows, self.table_.columns.get_loc(column)] = values

    def _coverage(self) -> pd.DataFrame:
        parts = []
        for size, atlas in self.sizes_.items():
            table = self.table_.iloc[atlas.rows][["model", "layer", "depth", "classified"]]
            table = table.assign(**self._nulls[size]).rename(columns={"classified": "coverage"})
            levels = {"bank": [], "model": ["model"], "layer": ["model", "layer", "depth"]}
            for level, keys in levels.items():
                groups = table.groupby(keys or (lambda _: 0), sort=False)
                part = groups[["coverage", *NULLS]].mean()
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

"""The atlas of a bank: every filter's pattern, and every claim beside its null model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.claims import claims_table
from keyfilters.clusters.estimator import Estimator
from keyfilters.clusters.evidence import STEPS
from keyfilters.clusters.fit_size import fit_size
from keyfilters.clusters.pattern_book import PatternBook, name_filters_of
from keyfilters.clusters.per_filter import flaws_of
from keyfilters.clusters.sentences import in_words
from keyfilters.clusters.size_atlas import SizeAtlas, size_label
from keyfilters.clusters.stored import load_nested, save_nested
from keyfilters.clusters.summary import summarise
from keyfilters.clusters.tables import (
    NullsClassified,
    coverage_table,
    filter_table,
    unusable_table,
    write_table,
)
from keyfilters.columns import LARGE
from keyfilters.errors import KeyFiltersError, NoFiltersError, refuse_damage
from keyfilters.files import write_whole

__all__ = ["Atlas"]

Progress = Callable[[str], None]

FORMAT = "keyfilters-atlas-1"
STORED = ("unusable_", "unclustered_", "coverage_", "claims_", "words_", "summary_")


class Atlas(Estimator):
    """Unsupervised patterns of a bank's filters, named, and measured against chance.

    Args:
        seed: of everything random; the seeds used are seed, seed + 1, ...
        seeds: number of seeds over which spreads and agreements are taken.
        threshold: dissimilarity below which a filter counts as classified; None for the values of
            babaiee2024unveiling, 0.3 for windows of 49 taps and more and 0.2 for smaller ones.
        counts: numbers of prototypes of the rate–distortion curve.
        fewest: kernel sizes with fewer usable filters are listed but not clustered.
        sample: at most so many filters of a size are used for fitting; all of them are assigned.
        feed_forward: whether to fit also the encoder network of babaiee2024unveiling, as a control;
            it takes longer than all other methods together.
        by_layer: whether the covariance null has a covariance of every large layer, as of
            ``keyfilters.null_bank(..., by_layer=True)``: a stricter null where layers differ.
        device: where the autoencoders are trained.

    Attributes:
        bank_: the bank.
        table_: one row a filter, in the order of ``bank.layers``: model, layer, depth, channel,
            k_y, k_x, stride (the larger of two; NaN where unknown), norm, mean, flaw (why it is not
            usable, or empty), pattern, name (variants of a pattern not told apart), kind (coarse
            group of names), code in (0, 1), dissimilarity to what the code decodes to, classified;
            the idealised receptive field: family, sigma_x, sigma_y, second, amplitude, offset, r2,
            p and q as in `keyfilters.match`, against filters of the covariance null; and the
            published and the consensus key that explain most of it, with the share r2.
        sizes_: a `SizeAtlas` for every kernel size with enough usable filters.
        unusable_: the filters without a shape: model, layer, channel and flaw.
        unclustered_: kernel sizes that were not clustered, and why.
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

    _table: pd.DataFrame | None = None

    def __init__(
        self,
        seed: int = 0,
        *,
        seeds: int = 3,
        threshold: float | None = None,
        counts: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
        fewest: int = 64,
        sample: int = 10_000,
        feed_forward: bool = False,
        by_layer: bool = False,
        device: str = "cpu",
    ) -> None:
        self.seed = seed
        self.seeds = seeds
        self.threshold = threshold
        self.counts = counts
        self.fewest = fewest
        self.sample = sample
        self.feed_forward = feed_forward
        self.by_layer = by_layer
        self.device = device
        self._check_options()

    def fit(self, bank: FilterBank, progress: Progress | None = None) -> Atlas:
        """Cluster, name and measure all filters of a bank.

        Args:
            bank: the filters.
            progress: called with the name of each step before it starts.

        Raises:
            NoFiltersError: no kernel size has enough usable filters.
        """
        started = time.perf_counter()
        self._check_options()
        progress = progress or (lambda step: None)
        self.bank_ = bank
        self._table = None
        progress("filters without a shape")
        flaws = flaws_of(bank)
        self.unusable_ = unusable_table(bank, flaws)
        self.sizes_: dict[tuple[int, int], SizeAtlas] = {}
        nulls: dict[tuple[int, int], NullsClassified] = {}
        self.unclustered_: dict[tuple[int, int], str] = {}
        for size in bank.sizes:
            of_size = np.concatenate([np.full(len(x.weight), x.size == size) for x in bank.layers])
            rows = np.flatnonzero(of_size & (flaws == 0))
            if len(rows) < self.fewest:
                self.unclustered_[size] = f"{len(rows)} usable filters, fewer than {self.fewest}"
            else:
                self.sizes_[size], nulls[size] = fit_size(self, size, rows, progress)
        if not self.sizes_:
            reasons = "; ".join(f"{y}×{x}: {why}" for (y, x), why in self.unclustered_.items())
            raise NoFiltersError(f"not enough filters for an atlas ({reasons or 'an empty bank'})")
        self.coverage_ = coverage_table(bank, self.sizes_, nulls)
        self.claims_ = self._claims()
        self.words_ = {
            size: in_words(part, size_label(size), one.threshold)
            for size, one in self.sizes_.items()
            for part in [self.claims_[self.claims_["size"] == size_label(size)]]
        }
        self.summary_ = summarise(self, time.perf_counter() - started)
        return self

    @property
    def table_(self) -> pd.DataFrame:
        """One row a filter, see above; made when it is asked for, and kept unless it is large."""
        if not hasattr(self, "sizes_"):
            raise AttributeError("this atlas has no table_ yet; call fit(bank) first")
        if self._table is not None:
            return self._table
        table = filter_table(self.bank_, self.sizes_, np.arange(len(self.bank_)))
        if len(table) <= LARGE:
            self._table = table
        return table

    def __repr__(self) -> str:
        if not hasattr(self, "summary_"):
            return super().__repr__()
        found = [
            f"{size_label(s)}: {len(a.patterns.table)} patterns" for s, a in self.sizes_.items()
        ]
        return f"Atlas({len(self.bank_):,} filters; {', '.join(found)})"

    def _repr_html_(self) -> str:
        """Show the patterns and every claim beside its strictest null, for a notebook."""
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        if not hasattr(self, "summary_"):
            return f"<p>{escape(repr(self))}; not fitted yet: fit(bank)</p>"
        parts = [f"<p>{escape(repr(self))}</p>"]
        for size, one in self.sizes_.items():
            prototypes = one.patterns.prototypes.reshape(-1, *size)
            parts.append(f"<p>{size_label(size)}</p>{contact_sheet(prototypes, 16, 36)}")
        told = self.claims_[["size", "claim", "value", "held_out", "strictest", "chance", "q"]]
        return "".join(parts) + told.to_html(index=False, float_format="{:.3f}".format, na_rep="")

    def steps(self, bank: FilterBank) -> int:
        """Number of times that `fit` will call its progress function for a bank, at most."""
        return 1 + (STEPS + 4) * len(bank.sizes)

    def predict(self, bank: FilterBank) -> pd.DataFrame:
        """Name the filters of another bank by the patterns found, without fitting.

        Returns:
            One row a filter, in the order of the bank, with the columns of `PatternBook.predict`,
            k_y and k_x. A filter of a kernel size that has no patterns here has no name.

        Raises:
            KeyFiltersError: not fitted yet, or none of the bank's kernel sizes has patterns here.
        """
        self._check_fitted()
        known = [size for size in bank.sizes if size in self.sizes_]
        if not known:
            raise KeyFiltersError(
                f"expected filters of {' or '.join(map(size_label, self.sizes_))}, which this "
                f"atlas has patterns of, got {', '.join(map(size_label, bank.sizes)) or 'none'}"
            )
        return name_filters_of(bank, [PatternBook.of(self, size) for size in known])

    def transform(self, bank: FilterBank) -> NDArray[np.float64]:
        """Return the code of every filter of a bank, ``(n,)`` in (0, 1); NaN where it has none.

        Raises:
            KeyFiltersError: as `predict`.
        """
        return self.predict(bank)["code"].to_numpy()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a fitted atlas into a folder.

        ``filters.parquet`` (the table), ``summary.json`` (all figures), ``bank.safetensors`` (the
        filters) and ``atlas.safetensors`` (decoded filters, patterns and the rest of what `load`
        needs). Every file is at any moment the old or the new one.

        Raises:
            KeyFiltersError: not fitted yet, or the folder cannot be written to.
        """
        self._check_fitted()
        folder = Path(folder)
        write_table(folder / "filters.parquet", self.bank_, self.sizes_)
        text = json.dumps(self.summary_, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(folder / "summary.json", text + "\n")
        self.bank_.save(folder / "bank.safetensors")
        held = {
            "params": self.get_params(),
            # No figure needs each fit of each seed.
            "sizes": {
                size: replace(a, evidence=replace(a.evidence, fits={}))
                for size, a in self.sizes_.items()
            },
        }
        held |= {name: getattr(self, name) for name in STORED}
        save_nested(folder / "atlas.safetensors", held, FORMAT)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Atlas:
        """Read an atlas that `save` wrote; it names filters and makes pages as before.

        Of the fits of `SizeAtlas.evidence`, only the filters that the 1-D code decodes to are kept.

        Raises:
            SourceError: a file is missing, damaged, or of another kind.
        """
        folder = Path(folder)
        path = folder / "atlas.safetensors"
        with refuse_damage(path, "a fitted atlas"):
            held = load_nested(path, FORMAT)
            atlas = cls(**held["params"])
            atlas.bank_ = FilterBank.load(folder / "bank.safetensors")
            if "unusable_" not in held:  # older files
                held["unusable_"] = unusable_table(atlas.bank_)
            for name in STORED:
                setattr(atlas, name, held[name])
            sizes = held["sizes"].items()
            atlas.sizes_ = {size: replace(one, bank=atlas.bank_) for size, one in sizes}
            return atlas

    def _check_options(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise KeyFiltersError(f"threshold must lie between 0 and 1, got {self.threshold:g}")
        if self.seeds < 1 or self.seed < 0:
            raise KeyFiltersError(
                f"seeds must be at least 1 and seed at least 0, got {self.seeds} and {self.seed}"
            )

    def _check_fitted(self) -> None:
        if not hasattr(self, "summary_"):
            raise KeyFiltersError("this atlas is not fitted yet; call fit(bank) first")

    def _claims(self) -> pd.DataFrame:
        """All claims of the atlas, so that together at most one page in twenty claims falsely."""
        from scipy.stats import false_discovery_control

        parts = [claims_table(a.claims).assign(size=size_label(s)) for s, a in self.sizes_.items()]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "size", table.pop("size"))
        return table.assign(q=false_discovery_control(table["p"]))

"""What the atlas finds for one kernel size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.claims import Claim
from keyfilters.clusters.evidence import Evidence
from keyfilters.clusters.key_use import KeyUse
from keyfilters.clusters.matched import Matched
from keyfilters.clusters.patterns import Patterns
from keyfilters.filter_rows import FilterRows
from keyfilters.scalespace import centred_unit

__all__ = ["SizeAtlas", "size_label", "threshold_of"]


def size_label(size: tuple[int, int]) -> str:
    """Write a window ``(k_y, k_x)``.

    >>> size_label((1, 7))
    '1×7'
    """
    return f"{size[0]}×{size[1]}"


def threshold_of(size: tuple[int, int], threshold: float | None = None) -> float:
    """Return the dissimilarity below which a filter of ``(k_y, k_x)`` counts as classified.

    Args:
        size: window.
        threshold: the one chosen; None for that of babaiee2024unveiling.
    """
    if threshold is not None:
        return threshold
    return 0.3 if size[0] * size[1] >= 49 else 0.2


@dataclass(frozen=True, eq=False)
class SizeAtlas:
    """The atlas of one kernel size.

    Attributes:
        size: ``(k_y, k_x)``.
        threshold: dissimilarity below which a filter counts as classified.
        rows: ``(n,)`` index of its usable filters in the atlas's table.
        decoded: ``(G, taps)`` filters that the 1-D code of the first seed decodes to.
        patterns: see `Patterns`.
        evidence: see `Evidence`.
        agreement: one row a data set (the filters, then each null), see `pattern_agreement`.
        squares: see `square_report`.
        matched: see `Matched`; None for windows of less than 3 taps along both sides.
        keys: how the published and the consensus keys explain the filters, where there are such.
        claims: all claims, each beside its nulls.
        bank: the atlas's bank, from which the filters are read.
    """

    size: tuple[int, int]
    threshold: float
    rows: NDArray[np.int64]
    decoded: NDArray[np.float32]
    patterns: Patterns
    evidence: Evidence
    agreement: pd.DataFrame
    squares: dict[str, Any]
    matched: Matched | None
    keys: dict[str, KeyUse]
    claims: list[Claim]
    bank: FilterBank = field(default_factory=lambda: FilterBank([]))

    @property
    def filters(self) -> FilterRows:
        """The usable filters, ``(n, k_y, k_x)``, read when they are asked for."""
        return FilterRows(self.bank, self.rows)

    @property
    def unit(self) -> NDArray[np.float32]:
        """``(n, taps)`` their centred unit forms."""
        return centred_unit(self.filters[:])

    def of_models(self, models: Sequence[str]) -> NDArray[np.int64]:
        """Return the places ``(m,)`` of the usable filters of some models."""
        chosen = np.array([layer.model in models for layer in self.bank.layers], dtype=bool)
        return np.flatnonzero(chosen[self.layers])

    @property
    def layers(self) -> NDArray[np.int32]:
        """``(n,)`` number of the layer that each usable filter is in."""
        return self.filters.layers_of(self.rows).astype(np.int32)

    @property
    def classified(self) -> NDArray[np.bool_]:
        """``(n,)`` which of them have a dissimilarity below the threshold."""
        return self.patterns.dissimilarity < self.threshold

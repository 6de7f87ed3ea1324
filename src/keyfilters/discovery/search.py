"""One search: candidates, elimination, further rounds around the survivors, exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.discovery.candidates import candidates, resampled
from keyfilters.discovery.criteria import Criterion
from keyfilters.discovery.elimination import exchange
from keyfilters.discovery.shares import explained_shares
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.seeds import child_integer, child_seed
from keyfilters.sizes import Window

__all__ = ["Found", "Search"]

SURVIVORS = 10  # around which a further round looks for candidates


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found; `keyfilters.discovery.Discovery` explains the fields."""

    keys: KeySet
    value: float
    r2: NDArray[np.float32]  # of every filter, by its best key
    pools: list[KeySet]
    curve: pd.DataFrame


@dataclass(frozen=True)
class Search:
    """How to search; see `keyfilters.discover_keys` for the fields."""

    size: Window
    count: int
    kinds: tuple[str, ...]
    rounds: int
    wanted: int
    seed: int

    def run(
        self,
        criterion: Criterion,
        *,
        fewest: int = 1,
        tell: Callable[[str], None] = lambda name: None,
    ) -> Found:
        """Search the filters of a criterion.

        Args:
            criterion: the filters, and what is missed least.
            fewest: candidates that must differ.
            tell: called with the name of every step.

        Raises:
            KeyFiltersError: fewer candidates differ.
        """
        tell("candidates")
        unit = criterion.unit
        pool = candidates(unit, self.size, self.count, kinds=self.kinds, seed=self.seed)
        if len(pool) < fewest:
            raise KeyFiltersError(
                f"only {len(pool)} candidates differ; {fewest} keys were asked for"
            )
        pools, curves = [], []
        for place in range(1, self.rounds + 1):
            tell(f"elimination, round {place}")
            gains = criterion.gains(pool)
            eliminated, curve = criterion.drop(pool, gains, place)
            pools.append(pool)
            curves.append(curve)
            if place < self.rounds:
                survivors = pool[eliminated.survivors(max(SURVIVORS, self.wanted + 2))]
                stream = child_integer(self.seed, "round", place)
                pool = resampled(unit, survivors, self.count, seed=stream)
        kept = eliminated.survivors(self.wanted)
        if criterion.exchanges:
            tell("exchange")
            kept = exchange(gains, kept)
        keys = pools[-1][kept]
        return Found(
            keys=keys,
            value=float(gains[:, kept].max(1).sum(dtype=np.float64)),
            r2=explained_shares(unit, keys).max(1),
            pools=pools,
            curve=pd.concat(curves, ignore_index=True),
        )

    def on_nulls(
        self,
        criterion: Criterion,
        nulls: Sequence[str],
        *,
        tell: Callable[[str], None] = lambda name: None,
    ) -> dict[str, Found]:
        """Search null filters of each kind in the same way, see `keyfilters.null_bank`."""
        found = {}
        for kind in nulls:
            tell(f"the same search on the {kind} null")
            found[kind] = self.run(criterion.on_null(kind, child_seed(self.seed, "discovery")))
        return found

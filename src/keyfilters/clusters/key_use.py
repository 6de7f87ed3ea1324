"""How well known keys explain the filters of a bank, and which key serves which filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, Claim
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet

__all__ = ["GOOD", "KeyUse", "known_keys", "measure_keys", "strongest_key", "use_of_keys"]

GOOD = 0.64  # r² from which a filter counts as explained by its key

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KeyUse:
    """One key set on the filters of one kernel size.

    Attributes:
        keys: the set.
        index: ``(n,)`` key that explains most of each filter's variance over the taps.
        sign: ``(n,)`` sign of its amplitude, 1 or -1.
        r2: ``(n,)`` share that ``a x + b`` with that key explains.
        claim: mean of `r2` beside that of null filters.
        table: one row a key: key, share (of the filters that it serves), r2 (their mean).
        quality: one row for the filters and one for each null: data, mean and median of r2, good
            (share of filters with r2 ≥ 0.64, which is a dissimilarity of 0.2).
    """

    keys: KeySet
    index: NDArray[np.int16]
    sign: NDArray[np.int8]
    r2: Array
    claim: Claim
    table: pd.DataFrame
    quality: pd.DataFrame


def known_keys(size: tuple[int, int]) -> dict[str, KeySet]:
    """Return the key sets that can be drawn for a window: published and consensus.

    Published are the idealised keys of lindeberg2026modelling at the scales of method B.
    """
    found = {}
    for name, make in (
        ("published", lambda: KeySet.published("lindeberg2026-B", size)),
        ("consensus", lambda: KeySet.consensus(size)),
    ):
        try:
            found[name] = make()
        except KeyFiltersError:  # no such keys of this size
            continue
    return found


def measure_keys(name: str, keys: KeySet, data: Mapping[str, Array]) -> KeyUse:
    """Measure one key set on filters and on their nulls.

    Args:
        name: of the key set.
        keys: K keys.
        data: ``(n, taps)`` centred unit filters under `FILTERS`, null filters under their kinds.
    """
    index, cosine = strongest_key(data[FILTERS], keys)
    return use_of_keys(name, keys, index, cosine, data)


def strongest_key(unit: Array, keys: KeySet) -> tuple[NDArray[np.int16], Array]:
    """Return the key that explains most of each ``(n, taps)`` filter, and its cosine ``(n,)``."""
    cosine = unit @ keys.filters.reshape(len(keys), -1).astype(np.float32).T
    index = np.abs(cosine).argmax(1)
    return index.astype(np.int16), cosine[np.arange(len(cosine)), index]


def use_of_keys(
    name: str,
    keys: KeySet,
    index: NDArray[np.int16],
    cosine: Array,
    nulls: Mapping[str, Array],
) -> KeyUse:
    """Measure one key set, see `measure_keys`, once every filter has its key.

    Args:
        name: of the key set.
        keys: K keys.
        index: ``(n,)`` key of every filter.
        cosine: ``(n,)`` with it.
        nulls: ``(m, taps)`` null filters under their kinds.
    """
    best = {FILTERS: cosine}
    best |= {key: strongest_key(unit, keys)[1] for key, unit in nulls.items() if key != FILTERS}
    scores = {key: found.astype(np.float64) ** 2 for key, found in best.items()}
    claim = Claim.measure(
        f"variance explained by {len(keys)} {name} keys",
        {key: score[None] for key, score in scores.items()},
    )
    quality = pd.DataFrame(
        {
            "data": list(scores),
            "mean": [float(score.mean()) for score in scores.values()],
            "median": [float(np.median(score)) for score in scores.values()],
            "good": [float((score >= GOOD).mean()) for score in scores.values()],
        }
    )
    r2 = cosine**2
    served = np.bincount(index, minlength=len(keys))
    total = np.bincount(index, weights=r2, minlength=len(keys))
    table = pd.DataFrame(
        {
            "key": keys.names,
            "share": served / len(index),
            "r2": np.divide(total, served, out=np.full(len(keys), np.nan), where=served > 0),
        }
    )
    sign = np.where(cosine < 0, np.int8(-1), np.int8(1))
    return KeyUse(keys, index, sign, r2, claim, table, quality)

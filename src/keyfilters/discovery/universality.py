"""How universal are keys? Those of one model, tried on the filters of all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.claims import halves
from keyfilters.clusters.keys import learn_keys
from keyfilters.discovery.discover import discover_keys
from keyfilters.discovery.shares import explained_shares
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import published_in
from keyfilters.scalespace import centred_unit
from keyfilters.sizes import Size, Window, as_window, extent

__all__ = ["matched_cosine", "universality"]


def universality(
    banks: Mapping[str, FilterBank], size: Size, keys: int = 8, *, seed: int = 0
) -> pd.DataFrame:
    """Say how well the keys of each model explain the filters of each.

    Args:
        banks: the filters of each model, by a name for it.
        size: kernel size k, or ``(k_y, k_x)``.
        keys: how many keys each set has.
        seed: of everything random.

    Returns:
        One row a key set, one column a model: the mean share of a filter's variance over the taps
        that the best key explains. The sets: those discovered on each model, those discovered on
        all others together, each model counting alike; the published idealised keys, if `keys` is
        their number at this size; and lines learned from the very model of the column.
        Keys of a model are held out where they meet its own filters: discovered on one half of its
        layers, measured on the other. Chance is the same function of the null banks, see
        `keyfilters.null_bank`.

    Raises:
        KeyFiltersError: fewer than two models have filters of this size.

    >>> from keyfilters.bank import Layer
    >>> filters = KeySet.random(4, size=5).filters.astype(np.float32).repeat(40, 0)
    >>> bank = FilterBank([Layer("net", "conv", filters, None, None, 0.0)])
    >>> universality({"a": bank, "b": bank}, 5, keys=4).round(2).loc["a", "b"].item()
    1.0
    """
    window = as_window(size)
    units, half = {}, {}
    for name, bank in banks.items():
        if window in bank.sizes:
            filters, table = bank.stack(window)
            usable = (table["flaw"] == "").to_numpy()
            if usable.sum() >= 2 * FEWEST:
                units[name] = centred_unit(filters[usable])
                half[name] = halves(table[usable])
    if len(units) < 2:
        raise KeyFiltersError(
            f"expected at least two models with {2 * FEWEST} or more {extent(window)} filters, "
            f"got {len(units)}"
        )
    search = partial(
        discover_keys, size=window, keys=keys, kinds=KINDS, count=COUNT, nulls=(), seed=seed
    )
    rows: dict[str, dict[str, float]] = {}
    for name, unit in units.items():
        found = search(banks[name]).keys
        rows[name] = {column: _value(other, found) for column, other in units.items()}
        rows[name][name] = _held_out(
            unit, half[name], lambda part: search(_bank_of(part, window)).keys
        )
    for name, unit in units.items():
        rest = FilterBank([])
        for other in units:
            rest = rest + banks[other] if other != name else rest
        found = search(rest, balance=True).keys
        rows.setdefault("all others", {})[name] = _value(unit, found)
    if keys == len(published_in(window)):
        published = KeySet.published("lindeberg2026-B", window)
        rows["published B"] = {name: _value(unit, published) for name, unit in units.items()}
    rows["lines of the model itself"] = {
        name: _held_out(
            unit,
            half[name],
            lambda part: learn_keys(part.reshape(-1, *window), keys, seed=seed),
        )
        for name, unit in units.items()
    }
    return pd.DataFrame(rows).T[list(units)]


def _bank_of(unit: NDArray[np.float32], size: Window) -> FilterBank:
    return FilterBank([Layer("half", "", unit.reshape(-1, *size), None, None, 0.0)])


def _held_out(
    unit: NDArray[np.float32],
    half: NDArray[np.bool_],
    learn: Callable[[NDArray[np.float32]], KeySet],
) -> float:
    """What keys learned on one half explain of the other, both ways, weighted by filters."""
    other = sum((~part).sum() * _value(unit[~part], learn(unit[part])) for part in (half, ~half))
    return float(other / len(unit))


KINDS = ("code", "lines", "idealized")
COUNT = 50  # candidates
FEWEST = 50  # filters that half a model must have


def matched_cosine(a: KeySet, b: KeySet) -> float:
    """Mean absolute cosine of the keys of two sets, each with its own partner in the best pairing.

    >>> keys = KeySet.random(5)
    >>> round(matched_cosine(keys, keys[[4, 2, 0, 1, 3]]), 6)
    1.0
    """
    from scipy.optimize import linear_sum_assignment

    cosine = np.abs(np.einsum("iyx,jyx->ij", a.filters, b.filters))
    rows, columns = linear_sum_assignment(-cosine)
    return float(cosine[rows, columns].mean())


def _value(unit: NDArray[np.float32], keys: KeySet) -> float:
    return float(explained_shares(unit, keys).max(1).mean(dtype=np.float64))

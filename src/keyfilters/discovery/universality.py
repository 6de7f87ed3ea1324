"""How universal are keys? Those of one model, tried on the filters of all others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters.keys import learn_keys
from keyfilters.discovery.discover import discover_keys
from keyfilters.discovery.gains import explained
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.models import render_models
from keyfilters.scalespace import centred_unit

__all__ = ["idealised_twin", "matched_cosine", "universality"]


def universality(
    banks: Mapping[str, FilterBank], size: int, keys: int = 8, *, seed: int = 0
) -> pd.DataFrame:
    """Say how well the keys of each model explain the filters of each.

    Args:
        banks: the filters of each model, by a name for it.
        size: kernel size k.
        keys: how many keys each set has.
        seed: of everything random.

    Returns:
        One row a key set, one column a model: the mean share of a filter's variance over the taps
        that the best key explains. The sets: those discovered on each model, those discovered on
        all others together, each model counting alike; the published idealised eight, where `keys`
        is 8 and the size odd; lines learned from the very model of the column, the bound; and
        random keys, the chance level.

    Raises:
        KeyFiltersError: fewer than two models have filters of this size.

    >>> from keyfilters.bank import Layer
    >>> filters = KeySet.random(4, size=5).filters.astype(np.float32).repeat(20, 0)
    >>> bank = FilterBank([Layer("net", "conv", filters, None, None, 0.0)])
    >>> universality({"a": bank, "b": bank}, 5, keys=4).round(2).loc["a", "b"].item()
    1.0
    """
    units = {}
    for name, bank in banks.items():
        if (size, size) in bank.sizes:
            filters, table = bank.stack(size)
            usable = filters[(table["flaw"] == "").to_numpy()]
            if len(usable) >= 50:
                units[name] = centred_unit(usable)
    if len(units) < 2:
        raise KeyFiltersError(
            f"expected at least two models with 50 or more {size}×{size} filters, got {len(units)}"
        )
    sets: dict[str, dict[str, KeySet]] = {}
    for name in units:
        found = discover_keys(banks[name], size=size, keys=keys, kinds=KINDS, seed=seed).keys
        sets[name] = dict.fromkeys(units, found)
    others = {}
    for name in units:
        rest = FilterBank([])
        for other in units:
            rest = rest + banks[other] if other != name else rest
        others[name] = discover_keys(
            rest, size=size, keys=keys, kinds=KINDS, balance=True, seed=seed
        ).keys
    sets["all others"] = others
    if keys == 8 and size % 2:
        sets["published B"] = dict.fromkeys(units, KeySet.published("lindeberg2026-B", size))
    sets["lines of the model itself"] = {
        name: learn_keys(unit.reshape(-1, size, size), keys, seed=seed)
        for name, unit in units.items()
    }
    sets["random"] = dict.fromkeys(units, KeySet.random(keys, size, seed))
    return pd.DataFrame(
        {
            column: {row: _value(unit, sets[row][column]) for row in sets}
            for column, unit in units.items()
        }
    )


KINDS = ("code", "lines", "idealized")


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


def idealised_twin(keys: KeySet) -> tuple[KeySet, pd.DataFrame]:
    """Return the idealised receptive field of every key as a key set, and what they are.

    Args:
        keys: of odd size.

    Returns:
        The twins, in the order of the keys, and the table of `keyfilters.match`.
    """
    table = match(keys.filters, null_draws=0).assign(key=keys.names)
    drawn = render_models(table, keys.filters.shape[1:])
    told = f"idealised twin of: {keys.provenance}"
    return KeySet.from_filters(drawn, keys.names, provenance=told), table


def _value(unit: NDArray[np.float32], keys: KeySet) -> float:
    return float(explained(unit, keys).max(1).mean(dtype=np.float64))

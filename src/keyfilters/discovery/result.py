"""What a discovery gives: the keys, the curve, and which filters each key serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.discovery.number import KeyNumber
from keyfilters.discovery.shares import explained_shares
from keyfilters.keyset import KeySet
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields import has_models, match

__all__ = ["Discovery", "curve_of", "models_of", "served_by", "weights"]


@dataclass(frozen=True, eq=False)
class Discovery:
    """Keys that were discovered.

    Attributes:
        keys: the key set.
        curve: one row a number of candidates, from all to one, round by round: round, keys (their
            number), value (mean share that the best of them explains: of a filter's variance over
            the taps, or with the criterion ``"outputs"`` of the variance of what it gives), the
            value of the same search on each null, dropped (the candidate dropped next; empty for
            the last) and number (its place in `pools`); with the criteria ``"agreement"`` and
            ``"accuracy"`` also what `keyfilters.discovery.functional.eliminate_by_answers` tells.
        pools: the candidates of every round.
        models: one row a key: key, share (of the filters that it serves), and its idealised
            receptive field as `keyfilters.match` finds it (family, sigma_x, sigma_y, second, angle,
            r2).
        served: one row a filter that has a shape: model, layer, depth, channel, key (that explains
            most of its variance over the taps) and r2 (the share of it).
        null_r2: for each null, r2 of its filters by the keys that the search finds in it.
        value: of `keys`, after exchange.
        nulls: of each null the value of the keys that the same search finds in it, rounds and
            exchange included.
        number: how many keys the filters ask for, see `keyfilters.discovery.number`; None where
            a number was given.
        options: what was asked, and for how many filters.
    """

    keys: KeySet
    curve: pd.DataFrame
    pools: list[KeySet]
    models: pd.DataFrame
    served: pd.DataFrame
    null_r2: dict[str, NDArray[np.float32]]
    value: float
    nulls: dict[str, float]
    number: KeyNumber | None
    options: dict[str, Any]

    def __repr__(self) -> str:
        return f"Discovery({self.words.rstrip('.')})"

    def _repr_html_(self) -> str:
        """Show the keys and what they explain beside chance, for a notebook."""
        from html import escape

        number = "" if self.number is None else f" {escape(self.number.words)}"
        shown = [
            c for c in ("key", "share", "family", "sigma_x", "sigma_y", "r2") if c in self.models
        ]
        table = self.models[shown].to_html(index=False, float_format="{:.3f}".format)
        return f"<p>{escape(self.words)}{number}</p>{self.keys._repr_html_()}{table}"

    @property
    def strictest(self) -> str:
        """Null in which the same search explains most."""
        return max(self.nulls, key=lambda null: self.nulls[null])

    @property
    def chance(self) -> float:
        """What the same search explains of the strictest null."""
        return self.nulls[self.strictest]

    @property
    def words(self) -> str:
        """What the keys explain, beside the strictest null, in one sentence."""
        what = "outputs'" if self.options["criterion"] == "outputs" else "filters'"
        start = f"{len(self.keys)} keys explain {self.value:.1%} of the {what} variance"
        if not self.nulls:
            return f"{start}."
        null = f"{NULLS[self.strictest]}, the strictest null"
        return f"{start}; the same search on {null}, {self.chance:.1%}."


def weights(models: pd.Series, balance: bool) -> NDArray[np.float32]:
    """Weight of every filter, ``(n, 1)`` of sum 1."""
    counts = models.map(models.value_counts()).to_numpy(dtype=np.float64)
    weight = 1 / counts if balance else np.ones(len(counts))
    return (weight / weight.sum())[:, None].astype(np.float32)


def curve_of(
    number: int, pool: KeySet, order: NDArray[np.int64], gains: NDArray[np.floating]
) -> pd.DataFrame:
    """Value of the survivors after every drop, one row a number of candidates, see `Discovery`.

    Args:
        number: of the round.
        pool: the N candidates.
        order: ``(N,)`` in which they were dropped.
        gains: ``(n, N)``.
    """
    # The last survivor alone, then with the one before it, and so on.
    served = np.maximum.accumulate(gains[:, order[::-1]], axis=1)
    return pd.DataFrame(
        {
            "round": number,
            "keys": np.arange(len(order), 0, -1),
            "value": served.sum(0, dtype=np.float64)[::-1],
            "dropped": [*(pool.names[i] for i in order[:-1]), ""],
            "number": order,
        }
    )


def served_by(table: pd.DataFrame, unit: NDArray[np.float32], keys: KeySet) -> pd.DataFrame:
    """Say which key explains most of each filter, one row a filter, see `Discovery`.

    Args:
        table: of the filters that have a shape, as of `FilterBank.stack`.
        unit: ``(n, taps)`` the same filters, centred, of unit norm.
        keys: those found.
    """
    shares = explained_shares(unit, keys)
    return table[["model", "layer", "depth", "channel"]].assign(
        key=np.array(keys.names)[shares.argmax(1)], r2=shares.max(1)
    )


def models_of(keys: KeySet, served: pd.DataFrame, balance: bool) -> pd.DataFrame:
    """Describe keys, one row each, see `Discovery`."""
    weight = weights(served["model"], balance)[:, 0].astype(np.float64)
    by_key = pd.Series(weight, index=served.index).groupby(served["key"]).sum()
    shares = by_key.reindex(keys.names, fill_value=0.0).to_numpy()
    table = pd.DataFrame({"key": keys.names, "share": shares})
    if has_models(keys.window):
        found = match(keys.filters, null=None)
        columns = ["family", "sigma_x", "sigma_y", "second", "angle", "r2"]
        table = pd.concat([table, found[columns]], axis=1)
    return table

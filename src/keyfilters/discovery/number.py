"""How many keys? As many as explain more of held-out filters than of noise that is as smooth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.keys import learn_keys
from keyfilters.discovery.elimination import eliminate
from keyfilters.discovery.shares import explained_shares
from keyfilters.nulls import null_units
from keyfilters.seeds import child_integer, child_seed
from keyfilters.sizes import Size, Window, as_window
from keyfilters.threads import one_thread

__all__ = ["KeyNumber", "number_of_keys"]

MOST = 48  # keys that are tried
DRAWS = 5  # null banks, and starts of the lines
SURE = 3.0  # standard errors that the gap must exceed
FLAT = 0.05  # share of the widest gap by which a gap may fall short of it

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KeyNumber:
    """The number of keys of a bank, and the curves that it is read from.

    Attributes:
        number: of keys; None where the widest gap is at most three standard errors.
        curve: one row a number of keys: keys, held_out (mean share of the variance of filters that
            keys of the other half explain), covariance (the same of the null with the same tap
            covariance, mean over draws), gap (the difference) and se (its standard error).
    """

    number: int | None
    curve: pd.DataFrame

    @property
    def words(self) -> str:
        """The answer in one sentence."""
        if self.number is None:
            return (
                "No number of keys stands out: held out, keys are not shown to explain more of "
                "these filters than of Gaussian filters with the same tap covariance."
            )
        row = self.curve.set_index("keys").loc[self.number]
        return (
            f"{self.number} keys: held out they explain {row['held_out']:.1%} of the filters' "
            f"variance, of Gaussian filters with the same tap covariance {row['covariance']:.1%}; "
            "more keys hardly widen the gap."
        )


@one_thread()
def number_of_keys(
    unit: Array, size: Size, half: NDArray[np.bool_], *, seed: int = 0, draws: int = DRAWS
) -> KeyNumber:
    """Read the number of keys off the gap between held-out filters and their covariance null.

    Keys are lines learned on one half and dropped one by one, the least missed first; what the
    survivors explain is measured on the other half. Both halves are averaged, and the same is done
    with null filters. The number is the least one whose gap falls short of the widest by no more
    than a twentieth or one standard error, whichever is more; it depends on the filters only, not
    on candidates. Where the widest gap is at most three standard errors there is no such number.

    Args:
        unit: ``(n, taps)`` centred filters of unit norm.
        size: taps k along either side, or ``(k_y, k_x)``.
        half: ``(n,)`` which filters are in the first half, see `keyfilters.claims.halves`.
        seed: of lines and null filters.
        draws: number of null banks, and of starts of the lines.
    """
    window = as_window(size)
    reals, nulls = [], []
    for i in range(draws):
        stream = child_seed(seed, "number", i)
        start = child_integer(stream, "lines")
        reals.append(_held_out(unit, window, half, start))
        drawn = null_units(unit, window, "covariance", stream)
        nulls.append(_held_out(drawn, window, half, start).mean(axis=0))
    shares = np.mean(reals, axis=0)
    real, null = shares.mean(axis=0), np.mean(nulls, axis=0)
    gap = real - null
    se = np.sqrt(shares.var(axis=0) / len(unit) + np.var(nulls, axis=0, ddof=1) / draws)
    widest = int(gap.argmax())
    number = None
    if gap[widest] > SURE * se[widest]:
        near = max(se[widest], FLAT * gap[widest])
        number = int(np.flatnonzero(gap >= gap[widest] - near)[0]) + 1
    curve = pd.DataFrame(
        {
            "keys": np.arange(1, len(gap) + 1),
            "held_out": real,
            "covariance": null,
            "gap": gap,
            "se": se,
        }
    )
    return KeyNumber(number, curve)


def _held_out(unit: Array, size: Window, half: NDArray[np.bool_], seed: int) -> NDArray[np.float32]:
    """Share of each filter's variance that 1, 2, … keys of the other half explain: ``(n, K)``."""
    most = max(1, min(MOST, int(half.sum()) // 4, int((~half).sum()) // 4))
    best = np.empty((len(unit), most), dtype=np.float32)
    for learned, measured in ((half, ~half), (~half, half)):
        lines = learn_keys(unit[learned].reshape(-1, *size), most, seed=seed, restarts=1)
        survivors = eliminate(explained_shares(unit[learned], lines)).survivors(len(lines))
        shares = np.maximum.accumulate(
            explained_shares(unit[measured], lines)[:, survivors], axis=1
        )
        best[measured, : len(lines)] = shares
        best[measured, len(lines) :] = shares[:, -1:]
    return best

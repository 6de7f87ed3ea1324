"""p-values of explained variance: how often does a null filter reach as much?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.columns import GRAIN, text_column
from keyfilters.errors import KeyFiltersError
from keyfilters.nulls import FILTERS_PER_TAP, NULLS

__all__ = ["choose_null", "significance"]

TAIL = 0.1  # share of the null draws whose tail is fitted
FEWEST_IN_TAIL = 30
SOURCES = ("", "count", "tail", "floor")
ROUNDING = 1e-6  # of explained shares: what differs by less is equal
FLOOR = 1e-5  # of the unexplained share, as for the criterion of `match`


def choose_null(null: str, filters: int, taps: int) -> str:
    """Return the kind of null: ``"auto"`` is covariance with enough filters, else white.

    Raises:
        KeyFiltersError: unknown kind.
    """
    if null in NULLS:
        return null
    if null != "auto":
        raise KeyFiltersError(
            f"null is {null!r}; expected 'auto', None or one of {', '.join(NULLS)}"
        )
    return "covariance" if filters >= FILTERS_PER_TAP * taps else "white"


def significance(r2: NDArray[Any], null_r2: NDArray[Any], kind: str) -> pd.DataFrame:
    """Return p- and q-values of explained shares against those of null filters.

    Where null filters reach as much, they are counted: p = (1 + number) / (1 + m). Beyond the
    largest tenth of them p follows a generalised-Pareto tail fitted to −ln(1 − r²), whose shape is
    not let below 0, so that nothing is called impossible. With fewer than 300 null filters there is
    no tail, and 1 / (1 + m) is a floor.

    Args:
        r2: ``(n,)`` explained shares; NaN for filters without a shape.
        null_r2: ``(m,)`` those of null filters, matched in the same way.
        kind: of the null, see `keyfilters.nulls.NULLS`.

    Returns:
        One row a filter: p; q, its false-discovery rate over the filters (Benjamini–Hochberg);
        p_from, ``"count"``, ``"tail"`` or ``"floor"``; and null, the kind.
    """
    known = np.flatnonzero(np.isfinite(r2))
    value, null = _surprise(np.asarray(r2)[known]), np.sort(_surprise(np.asarray(null_r2)))
    least = _surprise(np.asarray(r2)[known] - ROUNDING)
    reached = len(null) - np.searchsorted(null, least, side="left")
    p_known = (1 + reached) / (1 + len(null))
    source = np.zeros(len(r2), np.uint8)
    source[known] = np.where(reached > 0, SOURCES.index("count"), SOURCES.index("floor"))
    in_tail = int(TAIL * len(null))
    if in_tail >= FEWEST_IN_TAIL:
        start = float(null[-in_tail - 1])
        # Where few are counted the tail is the steadier estimate.
        beyond = np.flatnonzero((value > start) & (reached < FEWEST_IN_TAIL))
        share, tail = in_tail / len(null), _tail(null[-in_tail:] - start)
        for part in np.split(beyond, range(GRAIN, len(beyond), GRAIN)):  # SciPy copies much
            p_known[part] = share * tail(value[part] - start)
        source[known[beyond]] = SOURCES.index("tail")
    p = np.full(len(r2), np.nan)
    p[known] = p_known
    columns = {
        "p": p,
        "q": _false_discovery_rate(p),
        "p_from": text_column(source, SOURCES),
        "null": text_column(np.zeros(len(r2), np.uint8), [kind]),
    }
    return pd.DataFrame(columns, copy=False)


def _surprise(r2: NDArray[Any]) -> NDArray[np.float64]:
    """−ln(1 − r²), whose upper tail is nearly exponential for noise."""
    return -np.log(np.maximum(1 - r2.astype(np.float64), FLOOR))


def _tail(excess: NDArray[np.float64]) -> Any:
    """Survival function of the excess over a threshold, see `significance`."""
    from scipy.stats import genpareto

    shape, _, scale = genpareto.fit(excess, floc=0)
    if shape < 0:  # a bounded tail would call what lies beyond it impossible
        shape, scale = 0.0, float(excess.mean())
    return genpareto(shape, scale=scale).sf


def _false_discovery_rate(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini–Hochberg q-values of the p-values that are not NaN."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q

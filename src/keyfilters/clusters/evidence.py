"""Coverage of every method, measured on the filters and, by the same function, on their nulls.

A method is fitted to the filters whose coverage is measured, and to null filters where those are
measured: does it find prototypes as good where there is nothing to find? Held out, it is fitted to
one half of the layers or models and measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, Claim
from keyfilters.clusters.methods import (
    IDEALISED,
    KMEANS,
    ONE_DIMENSION,
    Fitted,
    coverage_methods,
    idealised,
)
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes

__all__ = ["STEPS", "STRICT", "Evidence", "gather_evidence"]

STRICT = ("covariance", "phase")  # the nulls of the rate–distortion curve
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 13))

Array = NDArray[np.float32]
Data = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What `gather_evidence` found for one kernel size.

    Attributes:
        claims: the coverage of each method, see `keyfilters.claims.Claim`.
        prototypes: their number for each method; NaN for a network.
        rate: coverage against the number of prototypes, of the filters and, for k-means and
            idealised filters, of the strict nulls: method, data, prototypes, coverage, sd.
        sweep: coverage against the threshold: method, data, threshold, coverage.
        fits: for every method and data set what was fitted, one a seed.
    """

    claims: list[Claim]
    prototypes: dict[str, float]
    rate: pd.DataFrame
    sweep: pd.DataFrame
    fits: dict[str, dict[str, list[Fitted]]]


def gather_evidence(
    data: Data,
    size: tuple[int, int],
    threshold: float,
    seeds: Sequence[int],
    counts: Sequence[int],
    half: NDArray[np.bool_],
    *,
    feed_forward: bool = False,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda stage: None,
) -> Evidence:
    """Measure how much each method covers of filters and of their nulls.

    Args:
        data: ``(n, taps)`` centred unit filters of one size, under `FILTERS`, and as many null
            filters under the name of each null.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which a filter counts as covered.
        seeds: of the fits to the filters; of the nulls the first, and for the 1-D code the second.
        counts: numbers of prototypes for the rate–distortion curve.
        half: ``(n,)`` which filters are in the first half, for the held-out coverage.
        feed_forward: whether to fit the encoder network of babaiee2024unveiling too.
        device: where autoencoders are trained.
        progress: called with the name of each step before it starts.
    """
    claims, prototypes, sweeps = [], {}, []
    fits: dict[str, dict[str, list[Fitted]]] = {}
    for name, fit in coverage_methods(feed_forward=feed_forward, device=device).items():
        progress(name)
        problems, owner = [], []
        null_seeds = seeds[: 2 if name == ONE_DIMENSION else 1]
        for key, unit in data.items():
            runs = list(seeds if key == FILTERS else null_seeds)
            problems += [(unit, s) for s in runs]
            problems += [(unit[half], seeds[0]), (unit[~half], seeds[0])]
            owner += [key] * (len(runs) + 2)
        fitted = fit(problems)
        of_data = {k: [f for f, o in zip(fitted, owner, strict=True) if o == k] for k in data}
        fits[name] = {key: found[:-2] for key, found in of_data.items()}
        held_out = {
            key: (_on_other_half(found[-2:], data[key], half) < threshold)
            for key, found in of_data.items()
        }
        claim, sweep = _measure(name, fits[name], data, threshold, held_out)
        claims.append(claim)
        sweeps += sweep
        prototypes[name] = _count(fits[name][FILTERS][0])
    progress(IDEALISED)
    fits[IDEALISED] = {key: [idealised(size)] for key in data}
    claim, sweep = _measure(IDEALISED, fits[IDEALISED], data, threshold, None)
    claims.append(claim)
    sweeps += sweep
    prototypes[IDEALISED] = _count(fits[IDEALISED][FILTERS][0])
    progress("rate–distortion curve")
    rate = _rate_distortion(data, fits, counts, threshold, seeds)
    return Evidence(claims, prototypes, rate, pd.DataFrame(sweeps), fits)


# How often `gather_evidence` calls its progress function, at most.
STEPS = 3 + len(KMEANS) + 2


def _measure(
    name: str,
    fits: Mapping[str, list[Fitted]],
    data: Data,
    threshold: float,
    held_out: Mapping[str, NDArray[np.bool_]] | None,
) -> tuple[Claim, list[dict[str, object]]]:
    """Coverage of one method as a claim, and over all thresholds."""
    far = {
        key: np.stack([f.dissimilarity(data[key]) for f in found]) for key, found in fits.items()
    }
    claim = Claim.measure(
        f"coverage, {name}",
        {key: (d < threshold).astype(float) for key, d in far.items()},
        None if held_out is None else {key: x.astype(float) for key, x in held_out.items()},
    )
    sweep: list[dict[str, object]] = [
        {"method": name, "data": key, "threshold": t, "coverage": float((d < t).mean())}
        for key, d in far.items()
        for t in THRESHOLDS
    ]
    return claim, sweep


def _on_other_half(fitted: list[Fitted], unit: Array, half: NDArray[np.bool_]) -> Array:
    """Dissimilarity to what was fitted to the half that a filter is not in."""
    far = np.empty(len(unit), dtype=np.float32)
    far[~half] = fitted[0].dissimilarity(unit[~half])
    far[half] = fitted[1].dissimilarity(unit[half])
    return far


def _rate_distortion(
    data: Data,
    fits: Mapping[str, Mapping[str, list[Fitted]]],
    counts: Sequence[int],
    threshold: float,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Coverage against the number of prototypes, k-means refitted and the others thinned out."""
    rows: list[dict[str, object]] = []

    def add(method: str, key: str, count: int, sets: list[PrototypeSet]) -> None:
        shares = [float((s.dissimilarity(data[key]) < threshold).mean()) for s in sets]
        sd = float(np.std(shares, ddof=1)) if len(shares) > 1 else float("nan")
        row = {"method": method, "data": key, "prototypes": count}
        rows.append(row | {"coverage": float(np.mean(shares)), "sd": sd})

    for key in (FILTERS, *STRICT):
        for count in counts:
            runs = seeds if key == FILTERS else seeds[:1]
            found = [kmeans_prototypes(data[key], count, s, restarts=1) for s in runs]
            add("k-means", key, count, [PrototypeSet(x) for x in found])
        for name, by_data in fits.items():
            sets = [s for s in by_data[key] if isinstance(s, PrototypeSet)]
            drawn = key == FILTERS or name == IDEALISED
            if name.startswith("k-means") or not sets or not drawn:
                continue
            pairs = zip(sets if key == FILTERS else sets[:1], seeds, strict=False)
            chosen = [s.most_covering(data[key], counts, threshold, seed) for s, seed in pairs]
            for count in chosen[0]:
                add(name, key, count, [c[count] for c in chosen])
    return pd.DataFrame(rows)


def _count(fitted: Fitted) -> float:
    return float(len(fitted)) if isinstance(fitted, PrototypeSet) else float("nan")

"""Coverage of every method, measured on the filters and, by the same function, on their nulls.

A method is fitted to the filters whose coverage is measured, and to null filters where those are
measured: does it find prototypes as good where there is nothing to find? Held out, it is fitted to
one half of the layers or models and measured on the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, Claim
from keyfilters.clusters.methods import (
    IDEALISED,
    KMEANS,
    ONE_DIMENSION,
    Fitted,
    Method,
    Problem,
    coverage_methods,
    idealised,
)
from keyfilters.clusters.principal_curve import START
from keyfilters.clusters.prototypes import PrototypeSet
from keyfilters.threads import side_by_side

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
    problems = {
        key: _Problems.of(unit, half, seeds if key == FILTERS else seeds[:2])
        for key, unit in data.items()
    }
    progress("k-means")
    wanted = [
        task
        for key, found in problems.items()
        for task in found.clusterings(
            counts if key in (FILTERS, *STRICT) else (), len(seeds) if key == FILTERS else 1
        )
    ]
    longest_first = sorted(wanted, key=lambda task: task[1] * len(task[0].unit), reverse=True)
    deque(side_by_side([partial(one.kmeans, n) for one, n in longest_first]), maxlen=0)
    claims, prototypes, sweeps = [], {}, []
    fits: dict[str, dict[str, list[Fitted]]] = {}
    for name, fit in coverage_methods(feed_forward=feed_forward, device=device).items():
        progress(name)
        fits[name], held_out = _fit(name, fit, problems, threshold)
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
    rate = _rate_distortion(problems, fits, counts, threshold)
    return Evidence(claims, prototypes, rate, pd.DataFrame(sweeps), fits)


# How often `gather_evidence` calls its progress function, at most.
STEPS = 4 + len(KMEANS) + 2


@dataclass(frozen=True, eq=False)
class _Problems:
    """What every method is fitted to of one data set: all filters, once a seed, and two halves."""

    whole: list[Problem]
    halves: list[Problem]
    half: NDArray[np.bool_]

    @classmethod
    def of(cls, unit: Array, half: NDArray[np.bool_], seeds: Sequence[int]) -> _Problems:
        halves = [Problem(unit[half], seeds[0]), Problem(unit[~half], seeds[0])]
        return cls([Problem(unit, seed) for seed in seeds], halves, half)

    def clusterings(self, curve: Sequence[int], seeds: int) -> list[tuple[Problem, int]]:
        """Return what is clustered by k-means later, and into how many prototypes.

        Args:
            curve: numbers of prototypes of the rate–distortion curve, if one is drawn.
            seeds: with so many of them the filters are clustered by k-means; codes start with all.
        """
        wanted = [(problem, {START, *KMEANS, *curve}) for problem in self.whole[:seeds]]
        wanted += [(problem, {START}) for problem in self.whole[seeds:]]
        wanted += [(problem, {START, *KMEANS}) for problem in self.halves]
        return [(problem, n) for problem, counts in wanted for n in sorted(counts)]

    @property
    def all(self) -> list[Problem]:
        return [*self.whole, *self.halves]

    def held_out(self, fitted: list[Fitted]) -> Array:
        """Dissimilarity to what was fitted to the half that a filter is not in."""
        unit = self.whole[0].unit
        far = np.empty(len(unit), dtype=np.float32)
        far[~self.half] = fitted[0].dissimilarity(unit[~self.half])
        far[self.half] = fitted[1].dissimilarity(unit[self.half])
        return far


def _fit(
    name: str, fit: Method, problems: Mapping[str, _Problems], threshold: float
) -> tuple[dict[str, list[Fitted]], dict[str, NDArray[np.bool_]]]:
    """Fit one method to everything; return what was fitted and what it covers held out."""
    chosen = [
        problem
        for key, found in problems.items()
        for problem in (
            found.all
            if key == FILTERS or name == ONE_DIMENSION
            else [found.whole[0], *found.halves]
        )
    ]
    middle = len(chosen) // 2
    tasks = [partial(fit, chosen[:middle]), partial(fit, chosen[middle:])]
    fitted = dict(zip(chosen, chain.from_iterable(side_by_side(tasks)), strict=True))
    whole = {
        key: [fitted[p] for p in found.whole if p in fitted] for key, found in problems.items()
    }
    held_out = {
        key: found.held_out([fitted[p] for p in found.halves]) < threshold
        for key, found in problems.items()
    }
    return whole, held_out


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


def _rate_distortion(
    problems: Mapping[str, _Problems],
    fits: Mapping[str, Mapping[str, list[Fitted]]],
    counts: Sequence[int],
    threshold: float,
) -> pd.DataFrame:
    """Coverage against the number of prototypes, k-means refitted and the others thinned out."""
    rows: list[dict[str, object]] = []

    def add(method: str, key: str, count: int, sets: list[PrototypeSet]) -> None:
        unit = problems[key].whole[0].unit
        shares = [float((s.dissimilarity(unit) < threshold).mean()) for s in sets]
        sd = float(np.std(shares, ddof=1)) if len(shares) > 1 else float("nan")
        row = {"method": method, "data": key, "prototypes": count}
        rows.append(row | {"coverage": float(np.mean(shares)), "sd": sd})

    for key in (FILTERS, *STRICT):
        whole = problems[key].whole if key == FILTERS else problems[key].whole[:1]
        for count in counts:
            add("k-means", key, count, [PrototypeSet(p.kmeans(count)) for p in whole])
        for name, by_data in fits.items():
            sets = [s for s in by_data[key] if isinstance(s, PrototypeSet)]
            drawn = key == FILTERS or name == IDEALISED
            if name.startswith("k-means") or not sets or not drawn:
                continue
            pairs = zip(sets, whole, strict=False)
            chosen = [s.most_covering(p.unit, counts, threshold, p.seed) for s, p in pairs]
            for count in chosen[0]:
                add(name, key, count, [c[count] for c in chosen])
    return pd.DataFrame(rows)


def _count(fitted: Fitted) -> float:
    return float(len(fitted)) if isinstance(fitted, PrototypeSet) else float("nan")

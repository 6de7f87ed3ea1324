"""Coverage beside its null models, over methods, numbers of prototypes, thresholds and seeds.

Every method is measured in three ways. On the filters themselves. On null filters with the *same*
prototypes: would a filter without structure be taken for one of these patterns? And *refitted* to
null filters: does the method find prototypes as good where there is nothing to find?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.clusters.autoencoder import CodeAutoencoder, FeedForwardAutoencoder
from keyfilters.clusters.nulls import NULLS, null_filters
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes
from keyfilters.receptive_fields import build_dictionary

__all__ = ["STEPS", "Evidence", "chance_in_words", "gather_evidence"]

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 13))
KMEANS = (8, 16, 32, 64)
ONE_DIMENSION, IDEALISED = "autoencoder 1-D", "idealised filters"

Array = NDArray[np.float32]


class Fitted(Protocol):
    """A method after fitting: it says how far filters are from what it can represent."""

    def dissimilarity(self, unit: Array) -> Array:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters."""
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What `gather_evidence` found for one kernel size.

    Attributes:
        coverage: one row a method: method, prototypes (number of them, NaN for a network), coverage
            (mean over seeds), sd (over seeds, NaN for one seed), and the same quantity on null
            filters: gaussian, tap-permuted (same prototypes), gaussian refit, tap-permuted refit.
        rate: coverage against the number of prototypes: method, data, prototypes, coverage, sd.
        sweep: coverage against the threshold: method, data, threshold, coverage.
    """

    coverage: pd.DataFrame
    rate: pd.DataFrame
    sweep: pd.DataFrame


def gather_evidence(
    unit: Array,
    size: tuple[int, int],
    threshold: float,
    autoencoders: Sequence[CodeAutoencoder],
    counts: Sequence[int],
    *,
    progress: Callable[[str], None] = lambda stage: None,
) -> Evidence:
    """Measure how much of `unit` each method covers, and how much of chance is in that.

    Args:
        unit: ``(n, taps)`` centred unit filters of one size.
        size: window ``(k_y, k_x)``.
        threshold: dissimilarity below which a filter counts as covered.
        autoencoders: 1-D autoencoders fitted to `unit`, one a seed; every other method is fitted
            with the same seeds.
        counts: numbers of prototypes for the rate–distortion curve.
        progress: called with the name of each step before it starts.
    """
    seeds = [auto.seed for auto in autoencoders]
    nulls = {name: null_filters(name, unit, seeds[0] + 1000) for name in NULLS}
    methods = _methods(autoencoders[0].device)
    fits: dict[str, list[Fitted]] = {}
    refits: dict[str, dict[str, Fitted]] = {}
    for name, fit in methods.items():
        progress(name)
        done = name == ONE_DIMENSION
        fits[name] = (
            [a.as_prototypes() for a in autoencoders] if done else [fit(unit, s) for s in seeds]
        )
        progress(f"{name} on null filters")
        refits[name] = {null: fit(filters, seeds[0]) for null, filters in nulls.items()}
    progress("idealised filters")
    atoms = build_dictionary(size).atoms.reshape(-1, unit.shape[1])
    idealised = PrototypeSet(atoms, either_sign=True)
    fits[IDEALISED] = [idealised]
    refits[IDEALISED] = dict.fromkeys(nulls, idealised)

    coverage, sweep = [], []
    for name, fitted in fits.items():
        far = [method.dissimilarity(unit) for method in fitted]
        shares = [float((d < threshold).mean()) for d in far]
        row: dict[str, object] = {"method": name, "prototypes": _count(fitted[0])}
        row |= {"coverage": np.mean(shares), "sd": _sd(shares)}
        curves = {"filters": np.concatenate(far)}
        for null, filters in nulls.items():
            curves[null] = fitted[0].dissimilarity(filters)
            curves[f"{null} refit"] = refits[name][null].dissimilarity(filters)
            row[null] = float((curves[null] < threshold).mean())
            row[f"{null} refit"] = float((curves[f"{null} refit"] < threshold).mean())
        coverage.append(row)
        sweep += [
            {"method": name, "data": data, "threshold": t, "coverage": float((d < t).mean())}
            for data, d in curves.items()
            for t in THRESHOLDS
        ]
    progress("rate–distortion curve")
    rate = _rate_distortion(unit, nulls, fits, counts, threshold, seeds)
    return Evidence(pd.DataFrame(coverage), rate, pd.DataFrame(sweep))


def _methods(device: str) -> dict[str, Callable[[Array, int], Fitted]]:
    def autoencoder(dimensions: int) -> Callable[[Array, int], Fitted]:
        return lambda unit, seed: (
            CodeAutoencoder(dimensions, seed, device=device).fit(unit).as_prototypes()
        )

    def kmeans(count: int) -> Callable[[Array, int], Fitted]:
        return lambda unit, seed: PrototypeSet(kmeans_prototypes(unit, count, seed))

    return {
        ONE_DIMENSION: autoencoder(1),
        "autoencoder 2-D": autoencoder(2),
        "feed-forward autoencoder 1-D": lambda unit, seed: FeedForwardAutoencoder(1, seed).fit(
            unit
        ),
        **{f"k-means {count}": kmeans(count) for count in KMEANS},
    }


# How often `gather_evidence` calls its progress function.
STEPS = 2 * len(_methods("cpu")) + 2


def _rate_distortion(
    unit: Array,
    nulls: dict[str, Array],
    fits: dict[str, list[Fitted]],
    counts: Sequence[int],
    threshold: float,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Coverage against the number of prototypes, k-means refitted and the others thinned out."""
    rows = []

    def add(method: str, data: str, count: int, shares: list[float]) -> None:
        rows.append(
            {
                "method": method,
                "data": data,
                "prototypes": count,
                "coverage": np.mean(shares),
                "sd": _sd(shares),
            }
        )

    def share(prototypes: PrototypeSet, filters: Array) -> float:
        return float((prototypes.dissimilarity(filters) < threshold).mean())

    for count in counts:
        found = [PrototypeSet(kmeans_prototypes(unit, count, s, restarts=1)) for s in seeds]
        add("k-means", "filters", count, [share(p, unit) for p in found])
        for null, filters in nulls.items():
            refit = PrototypeSet(kmeans_prototypes(filters, count, seeds[0], restarts=1))
            add("k-means", null, count, [share(found[0], filters)])
            add("k-means", f"{null} refit", count, [share(refit, filters)])
    for name, fitted in fits.items():
        if name.startswith("k-means") or not isinstance(fitted[0], PrototypeSet):
            continue
        chosen = [
            method.most_covering(unit, counts, threshold, seed)
            for method, seed in zip(fitted, seeds, strict=False)
            if isinstance(method, PrototypeSet)
        ]
        for count in chosen[0]:
            add(name, "filters", count, [share(c[count], unit) for c in chosen])
            for null, filters in nulls.items():
                add(name, null, count, [share(chosen[0][count], filters)])
    return pd.DataFrame(rows)


def _count(fitted: Fitted) -> float:
    return float(len(fitted)) if isinstance(fitted, PrototypeSet) else float("nan")


def _sd(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def chance_in_words(coverage: pd.DataFrame, size: tuple[int, int], threshold: float) -> str:
    """Say how much of the coverage is chance, from the table of `Evidence.coverage`.

    The null that decides is the refitted Gaussian one: what the same method with the same freedom
    covers of as many filters without any structure.
    """
    table = coverage.set_index("method")
    kernel = f"{size[0]}×{size[1]}"
    auto, ideal = table.loc[ONE_DIMENSION], table.loc[IDEALISED]
    worst = max(auto["gaussian refit"], ideal["gaussian"])
    start = (
        f"At a dissimilarity of {threshold:g} the 1-D code covers {auto['coverage']:.0%} of the "
        f"{kernel} filters and the idealised filters cover {ideal['coverage']:.0%}"
    )
    chance = (
        f"of random {kernel} filters they cover {auto['gaussian refit']:.0%} (the code refitted to "
        f"them) and {ideal['gaussian']:.0%}"
    )
    if auto["coverage"] - auto["gaussian refit"] < 0.02 > ideal["coverage"] - ideal["gaussian"]:
        return f"{start}; {chance}: no more than chance gives."
    if worst < 0.02:
        return (
            f"{start}; {chance}, so chance explains next to nothing of it. Of filters whose taps "
            f"are shuffled the same code covers {auto['tap-permuted']:.0%}, and a code refitted to "
            f"them {auto['tap-permuted refit']:.0%}: so much follows from single taps that stand "
            "out, wherever they lie."
        )
    verdict = (
        "at this size coverage says little by itself"
        if worst > 0.25
        else "part of the coverage is chance"
    )
    return (
        f"{start}; but {chance}: {verdict}. Beyond chance remain "
        f"{_beyond(auto['coverage'], auto['gaussian refit']):.0%} and "
        f"{_beyond(ideal['coverage'], ideal['gaussian']):.0%} of what chance leaves uncovered."
    )


def _beyond(coverage: float, chance: float) -> float:
    return max(0.0, (coverage - chance) / max(1e-9, 1 - chance))

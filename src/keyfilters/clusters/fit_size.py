"""Fitting the atlas of one kernel size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.claims import FILTERS, halves
from keyfilters.clusters.agreement import pattern_agreement
from keyfilters.clusters.evidence import Evidence, gather_evidence
from keyfilters.clusters.key_use import known_keys, use_of_keys
from keyfilters.clusters.matched import NULL_SAMPLE, match_filters
from keyfilters.clusters.methods import ONE_DIMENSION, Fitted
from keyfilters.clusters.patterns import read_patterns
from keyfilters.clusters.per_filter import describe
from keyfilters.clusters.prototypes import PrototypeSet
from keyfilters.clusters.size_atlas import SizeAtlas, size_label, threshold_of
from keyfilters.clusters.square_or_shifted import square_report
from keyfilters.clusters.tables import NullsClassified, layer_columns
from keyfilters.filter_rows import FilterRows
from keyfilters.nulls import NULLS, null_units, null_units_by_layer
from keyfilters.receptive_fields import has_models
from keyfilters.scalespace import centred_unit
from keyfilters.seeds import child_seed
from keyfilters.threads import one_thread, side_by_side

if TYPE_CHECKING:
    from keyfilters.clusters.atlas import Atlas

__all__ = ["fit_size"]

Progress = Callable[[str], None]
Units = dict[str, NDArray[np.float32]]


@one_thread()
def fit_size(
    atlas: Atlas, size: tuple[int, int], rows: NDArray[np.int64], progress: Progress
) -> tuple[SizeAtlas, NullsClassified]:
    """Cluster, name and measure the usable filters of one kernel size.

    Nulls, codes and k-means are fitted to a sample where there are many filters; codes, keys and
    idealised receptive fields are given to all, chunk by chunk.

    Args:
        atlas: whose options and bank are used.
        size: window ``(k_y, k_x)``.
        rows: ``(n,)`` the filters, by their numbers in the order of the bank's layers.
        progress: called with the name of each step before it starts.

    Returns:
        What was found, and which null filters are classified.
    """
    kernel, threshold, bank = size_label(size), threshold_of(size, atlas.threshold), atlas.bank_
    filters = FilterRows(bank, rows)
    where = pd.DataFrame(layer_columns(bank, rows, ("model", "layer", "stride")), copy=False)
    progress(f"{kernel}: null filters")
    chosen = _sample(len(rows), atlas.sample, "sample", atlas.seed)
    unit = centred_unit(filters[chosen])
    pooled = [kind for kind in NULLS if kind != "covariance" or not atlas.by_layer]
    nulls = {kind: null_units(unit, size, kind, atlas.seed) for kind in pooled}
    if atlas.by_layer:
        own = where.iloc[chosen].groupby(["model", "layer"], sort=False, observed=True).ngroup()
        layers = own.to_numpy()
        nulls["covariance"] = null_units_by_layer(unit, layers, size, "covariance", atlas.seed)
        nulls = {kind: nulls[kind] for kind in NULLS}
    evidence, agreement = _gather(
        atlas, {FILTERS: unit} | nulls, size, halves(where.iloc[chosen]), progress
    )
    codes = {key: _prototypes(found) for key, found in evidence.fits[ONE_DIMENSION].items()}
    progress(f"{kernel}: patterns")
    decoded, known = codes[FILTERS][0].prototypes, known_keys(size)
    found = describe(filters, size, decoded, known, threshold)
    patterns = read_patterns(
        decoded, found.use, lambda own: centred_unit(filters[own]), size, threshold
    )
    keys = {name: use_of_keys(name, one, *found.keys[name], nulls) for name, one in known.items()}
    squares = square_report(found.looks, where, size)
    progress(f"{kernel}: idealised receptive field of every filter")
    matched = None
    if has_models(size):
        some = _sample(len(unit), NULL_SAMPLE, "matched", atlas.seed)
        samples = {kind: null[some] for kind, null in nulls.items()}
        matched = match_filters(filters, samples, threshold, atlas.device)
    claims = [
        *evidence.claims,
        *([matched.claim] if matched is not None else []),
        *(use.claim for use in keys.values()),
    ]
    one = SizeAtlas(size, threshold, rows, decoded, patterns, evidence, agreement, squares,
                    matched, keys, claims, bank)  # fmt: skip
    classified = {k: codes[k][0].dissimilarity(null) < threshold for k, null in nulls.items()}
    return one, (classified, chosen)


def _gather(
    atlas: Atlas,
    data: Units,
    size: tuple[int, int],
    half: NDArray[np.bool_],
    progress: Progress,
) -> tuple[Evidence, pd.DataFrame]:
    """Coverage of all methods, and agreement of their patterns."""
    kernel, threshold = size_label(size), threshold_of(size, atlas.threshold)
    seeds = range(atlas.seed, atlas.seed + atlas.seeds)
    evidence = gather_evidence(
        data,
        size,
        threshold,
        seeds,
        [count for count in atlas.counts if count <= len(half) // 4],
        half,
        feed_forward=atlas.feed_forward,
        device=atlas.device,
        progress=lambda step: progress(f"{kernel}: {step}"),
    )
    progress(f"{kernel}: agreement")
    codes = {key: _prototypes(found) for key, found in evidence.fits[ONE_DIMENSION].items()}
    tasks = [
        partial(pattern_agreement, codes[key], seeds[: len(codes[key])], part, threshold)
        for key, part in data.items()
    ]
    agreement = pd.DataFrame(list(side_by_side(tasks)), index=list(data))
    return evidence, agreement


def _sample(count: int, most: int, purpose: str, seed: int) -> NDArray[np.int64]:
    """Return numbers below `count`, ascending: all of them, or as many as wanted at random."""
    if count <= most:
        return np.arange(count)
    generator = np.random.default_rng(child_seed(seed, purpose))
    return np.sort(generator.choice(count, most, replace=False))


def _prototypes(fitted: list[Fitted]) -> list[PrototypeSet]:
    return [found for found in fitted if isinstance(found, PrototypeSet)]

from __future__ import annotations

import numpy as np
import pandas as pd

from keyfilters.clusters.autoencoder import CodeAutoencoder
from keyfilters.clusters.evidence import chance_in_words, gather_evidence
from keyfilters.clusters.nulls import gaussian_null
from tests.clusters.test_patterns import planted_bank


def evidence_of(unit: np.ndarray, size: tuple[int, int]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    autoencoders = [CodeAutoencoder(1, seed).fit(unit) for seed in (0, 1)]
    found = gather_evidence(unit, size, 0.2, autoencoders, (1, 4, 16))
    return (
        found.coverage.set_index("method"),
        found.rate,
        chance_in_words(found.coverage, size, 0.2),
    )


def test_structure_is_far_above_its_nulls() -> None:
    unit, _ = planted_bank()
    coverage, rate, words = evidence_of(unit, (5, 5))
    assert coverage.loc["autoencoder 1-D", "coverage"] > 0.95
    assert coverage.loc["k-means 16", "coverage"] > 0.95
    assert coverage[["gaussian", "tap-permuted"]].max().max() < 0.05
    assert coverage["gaussian refit"].max() < 0.1
    assert "Beyond chance remain" in words or "next to nothing" in words
    curve = rate[(rate["method"] == "k-means") & (rate["data"] == "filters")]
    assert curve["coverage"].is_monotonic_increasing and curve["coverage"].iloc[0] < 0.3


def test_noise_is_not_above_its_nulls_and_the_words_say_so() -> None:
    coverage, _, words = evidence_of(gaussian_null(800, 9, 5), (3, 3))
    for method in ("autoencoder 1-D", "k-means 32", "idealised filters"):
        row = coverage.loc[method]
        assert abs(row["coverage"] - row["gaussian refit"]) < 0.08
    assert "no more than chance gives" in words


def test_few_filters_can_be_covered_by_chance_which_the_refitted_null_shows() -> None:
    coverage, _, _ = evidence_of(gaussian_null(120, 49, 5), (7, 7))
    row = coverage.loc["k-means 64"]
    assert row["coverage"] > 0.2  # single filters with a prototype of their own
    assert abs(row["coverage"] - row["gaussian refit"]) < 0.1
    assert row["gaussian"] < 0.02

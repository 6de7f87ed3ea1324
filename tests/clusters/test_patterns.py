"""Planted idealised filters must come out under their own names; noise must stay unnamed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from keyfilters.clusters.agreement import pattern_agreement
from keyfilters.clusters.naming import UNNAMED, chance_similarity, name_filters
from keyfilters.clusters.patterns import find_patterns, group_codes
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.clusters.square_or_shifted import look_square, square_report
from keyfilters.nulls import null_units
from keyfilters.receptive_fields.families import family
from keyfilters.scalespace import centred_unit


def ideal(name: str, size: int = 5, sigma: float = 0.8, second: float = 0.8) -> np.ndarray:
    form = family(name)
    drawn = form.render(torch.tensor([[sigma, second][: len(form.parameters)]]), (size, size))
    return centred_unit(drawn.numpy())[0]


PLANTED = {
    "edge +x": -ideal("x:d y:0"),
    "edge +y": -ideal("x:0 y:d"),
    "half-edge −y (off)": ideal("x:0 y:d+"),
    "half-edge +x (on)": -ideal("x:d+ y:0"),
    "on-centre": -ideal("laplacian", sigma=0.6),
    "off-centre": ideal("laplacian", sigma=0.6),
    "diagonal edge +x+y": -ideal("diagonal edge x+y"),
    "off-grid smoothing −x½+y½": ideal("shifted smoothing −x½+y½", sigma=1.0),
}


NAMED = {
    **PLANTED,
    "second derivative x (on)": -ideal("x:dd y:0"),  # too like a centre to be planted beside it
    "smoothing": ideal("x:0 y:0"),
    "bar along x (on)": ideal("x:0 y:0", sigma=2.0, second=0.3),
    "cross (off)": -ideal("cross", sigma=0.3, second=2.5),
    "mixed derivative xy (+)": ideal("x:d y:d"),
}


@pytest.mark.parametrize("name", NAMED)
def test_idealised_filters_get_their_own_names(name: str) -> None:
    [row] = name_filters(NAMED[name][None], (5, 5), 0.2).itertuples()
    assert row.name == name
    assert row.similarity > 0.98


def test_random_filters_stay_unnamed() -> None:
    for size in ((3, 3), (5, 5), (7, 7)):
        noise = centred_unit(np.random.default_rng(7).normal(size=(300, size[0] * size[1])))
        names = name_filters(noise, size, 0.2)["name"]
        assert (names == UNNAMED).mean() > 0.97
        assert chance_similarity(size) > 0.3


def planted_bank(noise: float = 0.25, each: int = 80) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(PLANTED)), each)
    clean = np.stack(list(PLANTED.values()))[truth]
    return centred_unit(clean + noise / 5 * generator.normal(size=clean.shape)), truth


def test_planted_patterns_are_found_named_and_assigned() -> None:
    unit, truth = planted_bank()
    auto = PrincipalCurve(1, seed=0).fit(unit)
    patterns = find_patterns(auto.decoded_, unit, (5, 5), 0.2)
    assert set(PLANTED) <= set(patterns.table["name"])
    named = patterns.table["name"].to_numpy()[patterns.index]
    assert (named == np.array(list(PLANTED))[truth]).mean() > 0.95
    assert (patterns.dissimilarity < 0.2).mean() > 0.97
    assert patterns.table["share"].sum() == pytest.approx((patterns.dissimilarity < 0.2).mean())
    assert patterns.table["filters"].sum() == len(unit)
    assert patterns.table["pattern"].is_unique
    assert patterns.table["code"].is_monotonic_increasing
    np.testing.assert_allclose(np.linalg.norm(patterns.prototypes, axis=1), 1, atol=1e-5)


def test_seeds_agree_on_planted_patterns_and_not_on_noise() -> None:
    unit, _ = planted_bank()
    noise = null_units(unit, (5, 5), "covariance", 0)
    codes = [PrincipalCurve(1, seed).fit(unit).as_prototypes() for seed in (0, 1)]
    on_noise = [PrincipalCurve(1, seed).fit(noise).as_prototypes() for seed in (0, 1)]
    agreement = pattern_agreement(codes, (0, 1), unit, 0.2)
    assert agreement["autoencoder seeds"] > 0.9
    assert agreement["autoencoder and k-means"] > 0.85
    assert pattern_agreement(on_noise, (0, 1), noise, 0.2)["autoencoder seeds"] < 0.5
    assert np.isnan(pattern_agreement(codes[:1], (0,), unit, 0.2)["k-means seeds"])


def squares(name: str, sigma: float, stride: float) -> tuple[np.ndarray, pd.DataFrame]:
    noise = np.random.default_rng(0).normal(size=(40, 25))
    unit = centred_unit(ideal(name, sigma=sigma) + 0.02 * noise)
    return unit, pd.DataFrame({"model": "net", "layer": "conv", "stride": [stride] * 40})


def test_squares_off_the_grid_are_told_from_squares_on_it() -> None:
    unit, table = squares("shifted smoothing −x½+y½", 1.0, 2.0)
    report = square_report(look_square(unit, (5, 5), 0.2), table, (5, 5))
    assert report["square_like"] == 40 and report["off_grid"] == 1
    assert report["direction"] == "−x½+y½" and report["one_direction"] == 1
    assert report["strided"] == (1.0, 1.0)
    unit, table = squares("square", 0.25, float("nan"))
    report = square_report(look_square(unit, (5, 5), 0.2), table, (5, 5))
    assert report["square_like"] == 40 and report["off_grid"] == 0
    assert report["strided"] is None
    unit, table = squares("x:d y:0", 0.8, 1.0)
    assert square_report(look_square(unit, (5, 5), 0.2), table, (5, 5))["square_like"] == 0
    looks = look_square(unit[:, :9], (3, 3), 0.2)
    assert "too small" in square_report(looks, table, (3, 3))["words"]


def test_filters_of_one_code_are_one_pattern() -> None:
    decoded = np.stack(list(PLANTED.values()))
    unit = np.repeat(decoded[2:3], 7, axis=0)
    assert group_codes(decoded, unit, 0.2).tolist() == [0] * 7

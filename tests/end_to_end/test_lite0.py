"""The main job on real weights: the figures that the page claims, within their spread."""

from __future__ import annotations

from pathlib import Path

import pytest

import keyfilters as kf


@pytest.fixture(scope="module")
def atlas(lite0: kf.FilterBank) -> kf.Atlas:
    return kf.Atlas(seed=0, seeds=2).fit(lite0)


def test_coverage_of_5x5_exceeds_every_null_and_most_of_it_is_smoothness(atlas: kf.Atlas) -> None:
    claims = atlas.claims_[atlas.claims_["size"] == "5×5"].set_index("claim")
    for claim, least in (
        ("coverage, autoencoder 1-D", 0.65),
        ("coverage, autoencoder 2-D", 0.63),
        ("coverage, k-means 8", 0.45),
        ("coverage, k-means 16", 0.55),
        ("coverage, k-means 32", 0.65),
        ("coverage, idealised filters", 0.61),
    ):
        assert claims.loc[claim, "value"] >= least, claim
        assert claims.loc[claim, "white"] < 0.02
        assert claims.loc[claim, "strictest"] == "covariance"
        assert 0.3 < claims.loc[claim, "chance"] < claims.loc[claim, "value"] - 0.05
    assert (claims["q"] < 0.05).all()


def test_coverage_of_3x3_by_a_code_is_no_more_than_smooth_noise_gives(atlas: kf.Atlas) -> None:
    claims = atlas.claims_[atlas.claims_["size"] == "3×3"].set_index("claim")
    code = claims.loc["coverage, autoencoder 1-D"]
    assert code["chance"] > 0.85 and code["q"] > 0.05
    assert "no more is shown here than chance gives" in atlas.words_[(3, 3)]["coverage"]


def test_patterns_have_the_names_the_papers_expect(atlas: kf.Atlas) -> None:
    names = set(atlas.sizes_[(5, 5)].patterns.table["name"])
    assert {"smoothing", "inverted smoothing"} <= names
    assert len({"edge +x", "edge −x", "edge +y", "edge −y"} & names) >= 3
    assert any(name.startswith("half-edge") for name in names)
    assert any(name.startswith("second derivative") for name in names)


def test_squares_are_centres_off_the_grid_in_the_subsampling_layers(atlas: kf.Atlas) -> None:
    squares = atlas.sizes_[(5, 5)].squares
    assert squares["off_grid"] > 0.85 and squares["one_direction"] > 0.85
    # EfficientNet-Lite0 subsamples with 5×5 kernels in blocks 3 and 11.
    strided = sum(n for name, n in squares["layers"].items() if ".3." in name or ".11." in name)
    assert strided / squares["square_like"] > 0.85


def test_seeds_agree_more_than_on_noise(atlas: kf.Atlas) -> None:
    for size in atlas.sizes_.values():
        seeds = size.agreement["autoencoder seeds"]
        assert seeds["filters"] > 2 * seeds["white"] and seeds["filters"] > seeds["covariance"]


def test_page_of_a_real_model(atlas: kf.Atlas, tmp_path: Path) -> None:
    path = kf.write_report(atlas, tmp_path / "report.html")
    assert path.stat().st_size < 2e6

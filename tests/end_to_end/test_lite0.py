"""The main job on real weights: the figures that the page claims, within their spread."""

from __future__ import annotations

from pathlib import Path

import pytest

import keyfilters as kf


@pytest.fixture(scope="module")
def atlas(lite0: kf.FilterBank) -> kf.Atlas:
    return kf.Atlas(seed=0, seeds=2).fit(lite0)


def test_coverage_of_5x5_is_far_above_chance(atlas: kf.Atlas) -> None:
    coverage = atlas.sizes_[(5, 5)].evidence.coverage.set_index("method")
    for method, least in (
        ("autoencoder 1-D", 0.65),
        ("autoencoder 2-D", 0.63),
        ("k-means 8", 0.45),
        ("k-means 16", 0.55),
        ("k-means 32", 0.65),
        ("idealised filters", 0.61),
    ):
        assert coverage.loc[method, "coverage"] >= least, method
    assert coverage[["gaussian", "tap-permuted"]].max().max() <= 0.02
    assert coverage["gaussian refit"].max() <= 0.02


def test_coverage_of_3x3_is_called_chance_where_it_is(atlas: kf.Atlas) -> None:
    small = atlas.sizes_[(3, 3)]
    ideal = small.evidence.coverage.set_index("method").loc["idealised filters"]
    assert ideal["gaussian"] == pytest.approx(0.5, abs=0.05)
    assert "coverage says little by itself" in small.chance
    assert f"{ideal['gaussian']:.0%}" in small.chance


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
        agreement = size.agreement
        assert agreement["autoencoder seeds"] > 2 * agreement["autoencoder seeds on gaussian"]


def test_page_of_a_real_model(atlas: kf.Atlas, tmp_path: Path) -> None:
    path = kf.write_report(atlas, tmp_path / "report.html")
    assert path.stat().st_size < 2e6

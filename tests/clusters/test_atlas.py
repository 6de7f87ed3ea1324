from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.receptive_fields.families import MATCHED, in_window


def test_table_has_one_row_a_filter_in_the_bank_s_order(planted_atlas: kf.Atlas) -> None:
    table = planted_atlas.table_
    assert len(table) == len(planted_atlas.bank_)
    assert table["layer"].drop_duplicates().tolist()[0] == "a"
    assert table["classified"].mean() > 0.9
    usable = (table["flaw"] == "") & (table["k_x"] == 5)
    assert (table["pattern"] != "").equals(usable)
    assert table.loc[usable, "code"].between(0, 1).all()
    assert table.loc[table["layer"] == "broken", "flaw"].tolist()[:3] == [
        "dead",
        "non-finite",
        "constant",
    ]


def test_sizes_with_too_few_filters_are_named(planted_atlas: kf.Atlas) -> None:
    assert planted_atlas.unclustered_ == {(3, 3): "10 usable filters, fewer than 64"}


def test_coverage_of_every_level_stands_beside_its_nulls(planted_atlas: kf.Atlas) -> None:
    coverage = planted_atlas.coverage_
    assert coverage["level"].tolist() == ["bank", *["model"] * 2, *["layer"] * 4]
    bank = coverage.iloc[0]
    layers = coverage[coverage["level"] == "layer"]
    assert bank["filters"] == layers["filters"].sum()
    mean = np.average(layers["coverage"], weights=layers["filters"])
    assert bank["coverage"] == pytest.approx(mean)
    assert bank["coverage"] > 0.9 > 0.3 > max(bank["white"], bank["phase"])


def test_noise_of_unlike_layers_has_no_structure_beside_noise_of_each_layer() -> None:
    """One covariance cannot say so: layers of unlike smoothness exceed it without structure."""
    generator = np.random.default_rng(3)
    smooth = generator.normal(size=(250, 25)) @ np.kron(*[_blur(5)] * 2)
    layers = [
        Layer("net", name, filters.reshape(-1, 5, 5).astype(np.float32), None, None, 0.0)
        for name, filters in (("rough", generator.normal(size=(250, 25))), ("smooth", smooth))
    ]
    claims = {}
    for by_layer in (False, True):
        atlas = kf.Atlas(seeds=1, counts=(4,), by_layer=by_layer).fit(kf.FilterBank(layers))
        claims[by_layer] = atlas.claims_.set_index("claim")
    explained = "coverage, idealised filters"
    assert claims[False].loc[explained, "q"] < 0.01
    assert claims[True].loc[explained, "q"] > 0.05
    pd.testing.assert_series_equal(claims[True]["value"], claims[False]["value"])


def _blur(width: int) -> np.ndarray:
    """Symmetric matrix whose product with noise is smooth."""
    at = np.arange(width)
    return np.exp(-((at[:, None] - at) ** 2) / 2)


def test_saved_files_hold_everything(planted_atlas: kf.Atlas, tmp_path: Path) -> None:
    planted_atlas.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "atlas.safetensors",
        "bank.safetensors",
        "filters.parquet",
        "summary.json",
    ]
    table = pd.read_parquet(tmp_path / "out" / "filters.parquet")
    pd.testing.assert_frame_equal(table, planted_atlas.table_, check_dtype=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == planted_atlas.summary_
    assert summary["config"]["seeds"] == 2 and summary["unusable"]["dead"] == 1
    bank = kf.FilterBank.load(tmp_path / "out" / "bank.safetensors")
    assert repr(bank) == repr(planted_atlas.bank_)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves that are hardly trained, for tests of what surrounds them."""
    monkeypatch.setitem(PrincipalCurve.__init__.__kwdefaults__, "steps", 40)


@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same_atlas_on_any_number_of_threads(
    planted_atlas: kf.Atlas,
) -> None:
    bank = kf.FilterBank(planted_atlas.bank_.layers[:2])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kf.Atlas(seed=0, seeds=1, counts=(1, 4)).fit(bank))
    finally:
        torch.set_num_threads(before)
    first, again = found
    pd.testing.assert_frame_equal(again.table_, first.table_)
    assert again.summary_["sizes"] == first.summary_["sizes"]


@pytest.mark.usefixtures("few_steps")
def test_a_large_bank_is_fitted_on_a_sample_and_assigned_in_full(planted_atlas: kf.Atlas) -> None:
    steps: list[str] = []
    atlas = kf.Atlas(seed=0, seeds=1, sample=200, counts=(1, 4))
    atlas.fit(planted_atlas.bank_, progress=steps.append)
    assert 0 < len(steps) <= atlas.steps(planted_atlas.bank_)
    assert len(atlas.sizes_[(5, 5)].patterns.index) == len(planted_atlas.sizes_[(5, 5)].rows)
    assert atlas.table_["classified"].mean() > 0.8
    of_bank = atlas.coverage_[atlas.coverage_["level"] == "bank"].iloc[0]
    assert of_bank["filters"] == len(planted_atlas.sizes_[(5, 5)].rows)
    assert 0 <= of_bank["white"] <= of_bank["covariance"] <= 1  # of the sample


@pytest.mark.usefixtures("few_steps")
def test_a_window_without_models_has_patterns_all_the_same(tmp_path: Path) -> None:
    taps = np.random.default_rng(0).normal(size=(90, 2, 2)).astype(np.float32)
    bank = kf.FilterBank([Layer("net", "conv", taps, (1, 1), (1, 1), 0.0)])
    atlas = kf.Atlas(seeds=1, counts=(1, 4), threshold=0.25).fit(bank)
    one = atlas.sizes_[(2, 2)]
    assert one.matched is None and one.threshold == 0.25 and not one.keys
    assert set(atlas.words_[(2, 2)]) == {"coverage"}
    assert (atlas.table_["family"] == "").all() and atlas.table_["r2"].isna().all()
    expected = (atlas.table_["dissimilarity"] < 0.25).tolist()
    assert atlas.table_["classified"].tolist() == expected
    page = kf.write_report(atlas, tmp_path / "report.html").read_text()
    assert "2×2" in page and "Every filter explained by" not in page
    atlas.save(tmp_path)
    pd.testing.assert_frame_equal(kf.Atlas.load(tmp_path).table_, atlas.table_)


def test_an_atlas_that_is_not_fitted_says_so() -> None:
    atlas = kf.Atlas(seeds=3)
    with pytest.raises(AttributeError, match="fit"):
        _ = atlas.table_
    assert "not fitted" in atlas._repr_html_()


def test_bad_settings_and_empty_banks() -> None:
    with pytest.raises(TypeError, match="treshold"):
        kf.Atlas(treshold=0.2)  # type: ignore[call-arg]
    with pytest.raises(kf.KeyFiltersError, match="between 0 and 1, got 2"):
        kf.Atlas(threshold=2)
    with pytest.raises(kf.KeyFiltersError, match="an empty bank"):
        kf.Atlas().fit(kf.FilterBank([]))
    dead = kf.FilterBank([Layer("net", "a", np.zeros((99, 3, 3), np.float32), None, None, 0.0)])
    with pytest.raises(kf.KeyFiltersError, match="3×3: 0 usable filters"):
        kf.Atlas().fit(dead)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (4, 4)])
def test_windows_of_every_shape_have_models(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    forms = [form for form in in_window(MATCHED, size) if form.separable is not None][:6]
    drawn = []
    for form in forms:
        sigma = torch.tensor(generator.uniform(0.7, 1.6, (30, len(form.parameters))))
        drawn.append(torch.nn.functional.normalize(form.render(sigma, size).flatten(1)).numpy())
    filters = np.concatenate(drawn).reshape(-1, *size)
    filters = filters + 0.03 * generator.normal(size=filters.shape)
    layer = Layer("net", "conv", filters.astype(np.float32), (1, 1), (1, 1), 0.0)
    atlas = kf.Atlas(seeds=1, counts=(4,)).fit(kf.FilterBank([layer]))
    one = atlas.sizes_[size]
    assert one.matched is not None and "published" in one.keys
    assert (atlas.table_["r2"] > 0.8).mean() > 0.9
    names = set(atlas.table_["name"].astype(str))
    axis = "y" if size == (9, 1) else "x"
    assert any("edge" in name and axis in name for name in names)
    assert not any("bar" in name for name in names) or min(size) > 1
    assert one.matched.shares["sigma"].between(0.4, 2.5).all()

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

import keyfilters as kf
from keyfilters.clusters.estimator import Estimator
from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.pattern_book import PatternBook
from keyfilters.clusters.principal_curve import CodeSpace, PrincipalCurve
from keyfilters.clusters.stored import load_nested, save_nested
from keyfilters.errors import SourceError
from keyfilters.report.page import render_report
from tests.clusters.test_patterns import planted_bank

CURVE = PrincipalCurve(1, 3, space=CodeSpace(1, 64, 8), steps=30)
OPTIONS = [
    kf.Atlas(4, seeds=2, threshold=0.25, counts=[1, 8]),
    CURVE,
    PrincipalCurve(dimensions=2),
    FeedForwardAutoencoder(2, 5, epochs=1),
]


@pytest.mark.parametrize("made", OPTIONS, ids=repr)
def test_scikit_learn_clones_what_takes_its_options_by_name(made: Estimator) -> None:
    kinds = {p.kind for p in inspect.signature(type(made)).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    copy = clone(made)
    assert type(copy) is type(made) and copy is not made
    assert copy.get_params() == made.get_params() and repr(copy) == repr(made)
    assert copy.set_params(seed=11).get_params()["seed"] == 11 != made.get_params()["seed"]
    with pytest.raises(kf.KeyFiltersError, match="sede"):
        copy.set_params(sede=1)


def test_options_that_cannot_be_leave_the_others_as_they_were() -> None:
    atlas = kf.Atlas(seeds=2)
    with pytest.raises(kf.KeyFiltersError, match="threshold"):
        atlas.set_params(seeds=5, threshold=2)
    assert atlas.get_params() == kf.Atlas(seeds=2).get_params()
    atlas.seeds = 0
    with pytest.raises(kf.KeyFiltersError, match="seeds"):
        atlas.fit(kf.FilterBank([]))


def test_a_principal_curve_fits_predicts_and_is_kept(tmp_path: Path) -> None:
    unit, _ = planted_bank()
    curve = clone(CURVE).fit(unit[:400])
    place, codes = curve.predict(unit[400:]), curve.transform(unit[400:])
    cosine = unit[400:] @ curve.decoded_.T
    np.testing.assert_array_equal(place, cosine.argmax(axis=1))
    np.testing.assert_array_equal(codes, curve.codes_[place])
    curve.save(tmp_path / "curve.safetensors")
    again = PrincipalCurve.load(tmp_path / "curve.safetensors")
    assert again.get_params() == curve.get_params()
    np.testing.assert_array_equal(again.decoded_, curve.decoded_)
    np.testing.assert_array_equal(again.transform(unit), curve.transform(unit))
    inside = make_pipeline(clone(CURVE)).fit(unit[:400])
    np.testing.assert_array_equal(inside.transform(unit[400:]), codes)


def test_a_feed_forward_autoencoder_is_kept(tmp_path: Path) -> None:
    unit, _ = planted_bank()
    network = FeedForwardAutoencoder(2, epochs=1).fit(unit)
    assert network.transform(unit[:7]).shape == (7, 2)
    made = network.predict(unit)
    np.testing.assert_allclose(network.dissimilarity(unit), 1 - (made * unit).sum(1), atol=1e-6)
    network.save(tmp_path / "network.safetensors")
    again = FeedForwardAutoencoder.load(tmp_path / "network.safetensors")
    np.testing.assert_array_equal(again.predict(unit), made)
    with pytest.raises(kf.KeyFiltersError, match="PrincipalCurve"):
        PrincipalCurve.load(tmp_path / "network.safetensors")


def test_a_kept_atlas_makes_the_same_page_and_names_filters(
    planted_atlas: kf.Atlas, tmp_path: Path
) -> None:
    planted_atlas.save(tmp_path)
    again = kf.Atlas.load(tmp_path)
    assert again.get_params() == planted_atlas.get_params() and repr(again) == repr(planted_atlas)
    pd.testing.assert_frame_equal(again.table_, planted_atlas.table_)
    for size, one in planted_atlas.sizes_.items():
        np.testing.assert_array_equal(again.sizes_[size].decoded, one.decoded)
        np.testing.assert_array_equal(again.sizes_[size].unit, one.unit)
    assert render_report(again) == render_report(planted_atlas)
    again.save(tmp_path / "second")
    for name in ("atlas.safetensors", "summary.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()
    loaded = kf.load_atlas(tmp_path)
    assert isinstance(loaded, kf.Atlas)
    bank = planted_atlas.bank_
    pd.testing.assert_frame_equal(loaded.predict(bank), planted_atlas.predict(bank))


def test_an_atlas_names_filters_of_every_size_in_the_bank_s_order(planted_atlas: kf.Atlas) -> None:
    bank, fitted = planted_atlas.bank_, planted_atlas.table_
    found = planted_atlas.predict(bank)
    for column in ("model", "layer", "channel", "k_y", "k_x", "flaw", "pattern", "name", "kind"):
        assert found[column].tolist() == fitted[column].tolist(), column
    assert found["classified"].tolist() == fitted["classified"].tolist()
    codes = planted_atlas.transform(bank)
    assert (np.isnan(codes) == (fitted["pattern"] == "")).all()
    small = kf.FilterBank([layer for layer in bank.layers if layer.size == (3, 3)])
    with pytest.raises(kf.KeyFiltersError, match="5×5"):
        planted_atlas.predict(small)


def test_what_is_not_fitted_or_damaged(planted_atlas: kf.Atlas, tmp_path: Path) -> None:
    for call in (kf.Atlas().predict, kf.Atlas().transform):
        with pytest.raises(kf.KeyFiltersError, match="fit"):
            call(planted_atlas.bank_)
    with pytest.raises(kf.KeyFiltersError, match="fit"):
        kf.Atlas().save(tmp_path / "none")
    with pytest.raises(kf.KeyFiltersError):
        kf.Atlas.load(tmp_path / "none")
    planted_atlas.save(tmp_path)
    whole = (tmp_path / "atlas.safetensors").read_bytes()
    text = {"value": np.frombuffer(b"[", np.uint8)}
    save_file(text, tmp_path / "atlas.safetensors", {"format": "keyfilters-atlas-1"})
    with pytest.raises(kf.KeyFiltersError):
        kf.Atlas.load(tmp_path)
    for content in (whole[: len(whole) // 2], b""):
        (tmp_path / "atlas.safetensors").write_bytes(content)
        with pytest.raises(kf.KeyFiltersError):
            kf.Atlas.load(tmp_path)


def test_atlases_of_before_and_of_others(planted_atlas: kf.Atlas, tmp_path: Path) -> None:
    planted_atlas.save(tmp_path)
    path = tmp_path / "atlas.safetensors"
    held = load_nested(path, "keyfilters-atlas-1")
    del held["unusable_"]  # once it was not kept
    save_nested(path, held, "keyfilters-atlas-1")
    again = kf.Atlas.load(tmp_path)
    pd.testing.assert_frame_equal(
        again.unusable_, planted_atlas.unusable_, check_dtype=False, check_categorical=False
    )
    save_nested(path, held, "something else")
    with pytest.raises(SourceError, match="not a fitted atlas"):
        kf.Atlas.load(tmp_path)


def test_nested_results_come_back_from_their_file(tmp_path: Path) -> None:
    value = {
        "numbers": [1, 0.5, np.float32(0.25), np.int64(7), None, True],
        (3, 3): ("a", np.arange(4.0)),
        "table": pd.DataFrame({"x": [1.0, 2.0], "kind": ["edge", "centre"]}, index=[4, 9]),
    }
    save_nested(tmp_path / "held", value, "kind")
    again = load_nested(tmp_path / "held", "kind")
    assert again["numbers"] == value["numbers"] and list(again) == list(value)
    assert again[(3, 3)][0] == "a" and again[(3, 3)][1].tolist() == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(again["table"], value["table"], check_dtype=False)


def test_patterns_are_copied_by_scikit_learn(planted_atlas: kf.Atlas) -> None:
    [size] = planted_atlas.sizes_
    book = PatternBook.of(planted_atlas, size)
    copy = clone(book)
    pd.testing.assert_frame_equal(
        copy.predict(planted_atlas.bank_), book.predict(planted_atlas.bank_)
    )

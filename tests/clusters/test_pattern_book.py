from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keyfilters as kf
from keyfilters.clusters.load_atlas import SHIPPED
from keyfilters.clusters.pattern_book import PatternBook
from keyfilters.nulls import NULLS
from tests.inspection.sick import healthy


def test_a_fitted_atlas_names_its_own_filters_alike(
    planted_atlas: kf.Atlas, tmp_path: Path
) -> None:
    [(size, one)] = planted_atlas.sizes_.items()
    PatternBook.of(planted_atlas, size, "planted").save(tmp_path / "book.safetensors")
    book = kf.load_atlas(tmp_path / "book.safetensors")
    found = book.predict(planted_atlas.bank_)
    fitted = planted_atlas.table_
    fitted = fitted[(fitted["k_y"] == size[0]) & (fitted["k_x"] == size[1])].reset_index(drop=True)
    for column in ("layer", "channel", "pattern", "name", "kind", "classified"):
        assert found[column].tolist() == fitted[column].tolist(), column
    np.testing.assert_allclose(found["code"], fitted["code"].astype(float), rtol=1e-6)
    np.testing.assert_allclose(
        found["dissimilarity"], fitted["dissimilarity"].astype(float), atol=1e-6
    )
    assert book.get_params()["threshold"] == one.threshold and "planted" in repr(book)


def test_the_shipped_atlas_names_a_model_without_fitting() -> None:
    book = kf.load_atlas("zoo-5x5")
    found = book.predict(healthy(2))
    assert len(found) == 192 and found["pattern"].isin(book.table["pattern"]).all()
    codes = book.transform(healthy(2))
    assert codes.min() > 0 and codes.max() < 1
    # A pattern's own filters are named by it.
    decoded = book.decoded.reshape(-1, 5, 5)
    bank = kf.FilterBank([kf.Layer("zoo", "code", 0.1 * decoded + 0.3, None, None, 0.0)])
    own = book.predict(bank)
    assert own["classified"].all()
    assert own["pattern"].tolist() == book.table["pattern"].iloc[book.index].tolist()


def test_coverage_stands_beside_every_null() -> None:
    book = kf.load_atlas("zoo-5x5")
    shares = book.coverage(healthy(2))
    assert set(shares) == {"filters", *NULLS}
    assert shares["filters"] == pytest.approx(book.predict(healthy(2))["classified"].mean())
    # What is drawn from a covariance is named no more than its covariance null, to chance.
    assert abs(shares["filters"] - shares["covariance"]) < 0.2 > shares["white"]


def test_filters_without_a_shape_have_no_name() -> None:
    weight = healthy(1).layers[0].weight.copy()
    weight[0], weight[1, 0, 0] = 0, np.nan
    bank = kf.FilterBank([kf.Layer("net", "a", weight, None, None, 0.0)])
    found = kf.load_atlas("zoo-5x5").predict(bank)
    assert found["flaw"].tolist()[:3] == ["dead", "non-finite", ""]
    assert found["name"].tolist()[:2] == ["", ""] and found["code"].isna().sum() == 2
    assert not found["classified"][:2].any()


def test_what_cannot_be_loaded(tmp_path: Path, planted_atlas: kf.Atlas) -> None:
    with pytest.raises(kf.KeyFiltersError, match="zoo-5x5"):
        kf.load_atlas("zoo-5x6")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    healthy(1).save(tmp_path / "bank.safetensors")
    for name in ("x.safetensors", "bank.safetensors"):
        with pytest.raises(kf.KeyFiltersError):
            kf.load_atlas(tmp_path / name)
    with pytest.raises(kf.KeyFiltersError, match="5×5"):
        PatternBook.of(planted_atlas, (9, 9))
    with pytest.raises(kf.KeyFiltersError):
        kf.load_atlas("zoo-5x5").predict(healthy(size=7))
    assert isinstance(PatternBook.load(SHIPPED / "zoo-5x5.safetensors").table, pd.DataFrame)

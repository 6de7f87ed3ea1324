from __future__ import annotations

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.clusters.matched import match_filters
from keyfilters.nulls import NULLS, null_units
from keyfilters.receptive_fields.models import render_models
from keyfilters.scalespace import centred_unit
from tests.clusters.test_patterns import planted_bank


def nulls_of(filters: np.ndarray) -> dict[str, np.ndarray]:
    unit = centred_unit(filters)
    return {kind: null_units(unit, filters.shape[1:], kind, 0) for kind in NULLS}


def test_models_rebuild_the_explained_part() -> None:
    unit, _ = planted_bank(noise=0.4, each=20)
    filters = (0.1 * unit + 0.02).reshape(-1, 5, 5).astype(np.float32)
    found = match_filters(filters, nulls_of(filters), 0.2)
    left = (filters - render_models(found.table, (5, 5))).reshape(len(filters), -1)
    power = ((filters - filters.mean((1, 2), keepdims=True)) ** 2).sum((1, 2))
    np.testing.assert_allclose(1 - (left**2).sum(1) / power, found.table["r2"], atol=1e-4)
    assert (found.table["r2"] >= found.bar).mean() > 0.95
    assert (found.nulls["white"] >= found.bar).mean() < 0.05
    assert found.claim.strictest == "covariance" and found.claim.p < 1e-6
    assert found.shares["share"].sum() == pytest.approx((found.table["r2"] >= found.bar).mean())
    assert found.component_shares[0] >= found.component_shares[-1] > 0


def test_off_grid_kinds_lie_off_the_grid() -> None:
    unit, _ = planted_bank(noise=0.1, each=20)
    filters = unit.reshape(-1, 5, 5)
    shares = match_filters(filters, nulls_of(filters), 0.2).shares.set_index("kind")
    assert shares.loc["off-grid centre", "half_grid_offset"] > 0.25
    assert shares.loc["centre", "half_grid_offset"] < 0.1


def test_noise_is_explained_no_better_than_noise() -> None:
    noise = np.random.default_rng(0).standard_normal((300, 5, 5)).astype(np.float32)
    found = match_filters(noise, nulls_of(noise), 0.2)
    assert found.significant < 0.02 and found.claim.p > 0.05
    assert abs(found.table["r2"].median() - np.median(found.nulls["white"])) < 0.03


def test_atlas_holds_a_model_of_every_filter(planted_atlas: kf.Atlas) -> None:
    usable = planted_atlas.table_.iloc[planted_atlas.sizes_[(5, 5)].rows]
    assert usable["r2"].between(0, 1).all() and (usable["family"] != "").all()
    others = planted_atlas.table_.drop(index=usable.index)
    assert (others["family"] == "").all() and others["r2"].isna().all()
    summary = planted_atlas.summary_["sizes"]["5×5"]["explained"]
    assert summary["share"] > 0.9 > 0.1 > summary["nulls"]["white"]

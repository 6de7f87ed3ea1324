from __future__ import annotations

import numpy as np

import keyfilters as kf
from keyfilters.claims import FILTERS
from keyfilters.clusters.key_use import known_keys, measure_keys
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_units
from keyfilters.scalespace import centred_unit


def test_filters_made_of_keys_are_explained_by_them_and_their_nulls_less() -> None:
    keys = KeySet.published("lindeberg2026-B", 7)
    generator = np.random.default_rng(0)
    index, sign = generator.integers(8, size=400), generator.choice([-1, 1], 400)
    filters = sign[:, None, None] * keys.filters[index]
    unit = centred_unit(filters + 0.02 * generator.normal(size=filters.shape))
    use = measure_keys("published", keys, {
        FILTERS: unit, "covariance": null_units(unit, (7, 7), "covariance", 0)
    })  # fmt: skip
    np.testing.assert_array_equal(use.index, index)
    np.testing.assert_array_equal(use.sign, sign)
    assert use.claim.value > 0.95 > 0.85 > use.claim.chance and use.claim.p < 1e-6
    assert use.table["share"].sum() == 1


def test_key_sets_of_every_window() -> None:
    assert set(known_keys((7, 7))) == {"published", "consensus"}
    assert set(known_keys((9, 9))) == {"published"}
    assert set(known_keys((4, 4))) == set(known_keys((1, 7))) == {"published"}
    assert known_keys((2, 2)) == {}


def test_atlas_says_which_key_serves_which_filter(planted_atlas: kf.Atlas) -> None:
    usable = planted_atlas.table_.iloc[planted_atlas.sizes_[(5, 5)].rows]
    keys = planted_atlas.sizes_[(5, 5)].keys["published"]
    assert usable["published_key"].isin(keys.keys.names).all()
    np.testing.assert_allclose(usable["published_r2"].to_numpy(float), keys.r2)
    claim = planted_atlas.claims_.set_index("claim").loc["variance explained by 8 published keys"]
    assert claim["value"] == keys.claim.value

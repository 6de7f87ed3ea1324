"""Lists of key sets: one of each size to replace, one set to initialise or parametrise."""

from __future__ import annotations

import pytest
from torch import nn

import keyfilters as kf
from keyfilters.keyset import KeySet

LIST = [KeySet.random(8, size) for size in (3, 5)]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=8))


def test_a_list_replaces_every_size() -> None:
    assert (kf.replace_filters_(network(), LIST)["keys"] == 8).all()


@pytest.mark.parametrize("function", ["parametrize", "initialize"])
def test_a_list_of_several_sizes_is_refused_where_one_set_is_meant(function: str) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kf.KeyFiltersError, match=r"expected one key set, got those of 3×3, 5×5"):
        if function == "parametrize":
            kf.parametrize_filters_(model, LIST)
        else:
            kf.initialize_filters_(model, "keys", keys=LIST)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_keys_are_suggested_only_of_sizes_that_exist() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 2, groups=8), nn.Conv2d(8, 8, (1, 2), groups=8))
    for function in (kf.replace_filters_, kf.parametrize_filters_):
        with pytest.raises(kf.KeyFiltersError) as caught:
            function(model, LIST[0])
        assert "published" not in str(caught.value) and "size=2" in str(caught.value)
    assert not kf.replace_filters_(model, KeySet.random(8, size=2))["left"][0]


def test_a_list_of_one_is_that_one() -> None:
    report = kf.parametrize_filters_(network(), LIST[:1]).set_index("layer")
    assert report.loc["0", "left"] == "" and report.loc["1", "left"] != ""

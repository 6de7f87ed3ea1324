"""Lists of key sets, one of each size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.keyset import KeySet

LIST = [KeySet.random(8, size) for size in (3, 5)]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=8))


def test_a_list_replaces_every_size() -> None:
    assert (kf.replace_filters_(network(), LIST)["keys"] == 8).all()


def test_a_list_parametrises_and_initialises_every_size_as_each_set_alone() -> None:
    together, apart = network(), network()
    apart.load_state_dict(together.state_dict())
    report = kf.parametrize_filters_(together, LIST, assignment="random")
    for keys in LIST:
        kf.parametrize_filters_(apart, keys, assignment="random")
    assert (report["parameters"] == 8).all() and (report["left"] == "").all()
    assert all(map(torch.equal, together.state_dict().values(), apart.state_dict().values()))
    drawn = kf.initialize_filters_(network(), "keys", keys=LIST)
    assert (drawn["scheme"] == "keys").all()
    alone = kf.initialize_filters_(network(), "keys", keys=LIST[0])
    assert alone["left"][0] == "" and "3×3" in alone["left"][1]


@pytest.mark.parametrize("function", [kf.replace_filters_, kf.parametrize_filters_])
def test_two_sets_of_one_size_are_refused(function: Callable[..., object]) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kf.KeyFiltersError, match="one size"):
        function(model, [*LIST, LIST[0]])
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

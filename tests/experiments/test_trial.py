from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import keyfilters as kf
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure
from keyfilters.training import normalise

SMALL = Setup(width=8, depth=1, size=3, epochs=2, watched=50, device="cpu")
DATA = "digits?samples=200&classes=0,1,2"


def test_first_weights_depend_on_the_seed_alone() -> None:
    data = load(DATA, SMALL, 0)
    before = torch.random.get_rng_state()
    one, same, other = (build_network(SMALL, data, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    states = [network.state_dict() for network in (one, same, other)]
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    assert not all(torch.equal(x, states[2][name]) for name, x in states[0].items())


@pytest.mark.parametrize(("side", "places"), [(8, 8), (16, 8), (28, 14), (32, 8)])
def test_networks_see_eight_to_fifteen_places_along_a_side(side: int, places: int) -> None:
    setup = replace(SMALL, resolution=side)
    network = build_network(setup, load(DATA, setup, 0), 0)
    seen: list[torch.Size] = []
    assert isinstance(network, torch.nn.Module)
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    convs[0].register_forward_hook(lambda module, given, out: seen.append(out.shape))
    network.eval()(torch.zeros(1, 1, side, side))
    assert seen[0][-1] == places


def test_kernel_size_is_that_of_the_setup() -> None:
    data = load(DATA, SMALL, 0)
    for name, size in (("convmixer", 7), ("convnext_atto", 3)):
        setup = Setup(network=name, size=size)
        assert list(kf.read(build_network(setup, data, 0)).sizes) == [(size, size)]
    with pytest.raises(kf.KeyFiltersError, match="kernel size of test_vit cannot be chosen"):
        build_network(Setup(network="test_vit", size=7), data, 0)
    with pytest.raises(kf.KeyFiltersError, match="the width of convnext_atto cannot be chosen"):
        build_network(replace(SMALL, network="convnext_atto"), data, 0)
    with pytest.raises(kf.KeyFiltersError, match=r"width is 8\.5; a whole number"):
        Setup(width=8.5)  # type: ignore[arg-type]


def test_what_is_measured_is_measured_on_all_test_images(tmp_path: Path) -> None:
    data = load(DATA, SMALL, 0)
    network = build_network(SMALL, data, 0)
    found = train_and_measure(SMALL, network, data, 0, tmp_path)
    with torch.no_grad():
        answers = network(normalise(data.test_images, data.mean, data.std)).argmax(1)
    right = (answers == data.test_labels).double().mean()
    assert found["top1"] == pytest.approx(100 * float(right))
    assert len(found["curve"]) == 2 and found["parameters"] == found["trainable"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("digits?sample=3", "the options samples, classes, root, not 'sample'; the nearest names"),
        ("digit", "no data set is called 'digit'"),
        ("digits?classes=11", "11"),
    ],
)
def test_data_that_cannot_be_had(asked: str, message: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        load(asked, SMALL, 0)
    with pytest.raises(kf.KeyFiltersError, match="epochs is 0"):
        Setup(epochs=0)


def test_first_filters_of_a_given_size() -> None:
    data = load(DATA, SMALL, 0)
    own, small, same, other = (
        build_network(setup, data, seed)
        for setup, seed in (
            (SMALL, 0),
            (replace(SMALL, std=0.02, width=64), 0),
            (replace(SMALL, std=0.02, width=64), 0),
            (replace(SMALL, std=0.02, width=64), 1),
        )
    )
    filters = [kf.read(network).stack(3)[0] for network in (own, small, same, other)]
    assert filters[1].std() == pytest.approx(0.02, rel=0.15) and filters[0].std() > 0.05
    assert (filters[1] == filters[2]).all() and not (filters[1] == filters[3]).any()
    assert "std" not in SMALL.to_dict() and replace(SMALL, std=0.02).to_dict()["std"] == 0.02
    with pytest.raises(kf.KeyFiltersError, match="std is -1; 0 or more"):
        replace(SMALL, std=-1)

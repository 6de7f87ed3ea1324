from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.experiments.on_keys import Treatment, alike, key_set


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 6, 5, groups=6), nn.Conv2d(6, 6, 5, groups=6))
    for conv in net:
        conv.weight.data = torch.randn(conv.weight.shape, generator=generator)
    return net


def filters(net: nn.Module) -> np.ndarray:
    return kf.read(net).stack(5)[0]


def step(net: nn.Module) -> None:
    """One large step of all that learns."""
    net(torch.ones(1, 6, 9, 9).cumsum(3)).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad.sign()


@pytest.mark.parametrize(
    ("asked", "moves", "on_keys"),
    [
        ("learned", True, False),
        ("frozen", False, False),
        ("idealized", False, False),
        ("keys", False, True),
        ("keys?keys=consensus", False, True),
        ("keys?learn=bias", True, True),
        ("keys?learn=amplitude,bias", True, True),
        ("keys?learn=sigma", True, False),
        ("keys?keys=random&drawn=1", False, True),
    ],
)
def test_what_moves_and_what_stays_on_keys(asked: str, moves: bool, on_keys: bool) -> None:
    net, treatment = network(), Treatment.parse(asked)
    own = filters(net)
    finish = treatment.apply_(net, 5, seed=3)
    before = filters(net) if treatment.kind != "keys" else None
    names = [name for name, x in net.named_parameters() if x.requires_grad]
    step(net)
    finish()
    after = filters(net)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    if before is not None:
        assert moves != np.array_equal(before, after)
    assert moves == any("weight" in name for name in names)
    if on_keys:
        a = key_set(treatment.keys, 5, 3).assign(after)[1]
        centred = after - after.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(np.abs(a), np.linalg.norm(centred, axis=(1, 2)), rtol=1e-5)
    if treatment.nearest and treatment.kind == "keys" and not treatment.learn:
        keys = key_set(treatment.keys, 5, 3)
        index, a, b, _ = keys.assign(own)
        np.testing.assert_allclose(after, keys.reconstruct(index, a, b), rtol=1e-5, atol=1e-6)


def test_keys_that_move_are_noticed() -> None:
    net = network()
    finish = Treatment.parse("keys").apply_(net, 5, 0)
    next(x for name, x in net.named_buffers() if name.endswith("amplitude"))[0] += 1e-3
    with pytest.raises(kf.KeyFiltersError, match="fixed, but moved"):
        finish()


def test_random_keys_are_those_of_the_seed() -> None:
    one, same, other = (key_set("random", 7, seed).filters for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other) and len(one) == 8


def test_keys_of_a_file(tmp_path: Path) -> None:
    kf.KeySet.random(3, 5).save(tmp_path / "mine.npz")
    path = str(tmp_path / "mine.npz")
    assert len(key_set(path, 5)) == 3
    assert str(Treatment.parse(f"keys?keys={path}")) == "keys mine, nearest, frozen"
    with pytest.raises(kf.KeyFiltersError, match="holds keys of 5×5; the network's are 7×7"):
        key_set(path, 7)


def test_names_say_what_is_done() -> None:
    names = [
        *("learned", "frozen", "idealized", "keys?learn=bias,sigma&unit_norm=1"),
        *("keys?keys=random&drawn=1", "keys?keys=consensus&learn=amplitude"),
    ]
    assert [str(Treatment.parse(name)) for name in names] == [
        "learned filters",
        "filters as they are, frozen",
        "own idealised models, frozen",
        "8 idealised keys, nearest, b and σ learned, unit norm",
        "8 random keys, drawn, frozen",
        "keys consensus, nearest, a learned",
    ]


def test_alike_differs_in_what_is_named_only() -> None:
    others = ["keys", "keys?drawn=1", "keys?learn=bias", "keys?keys=random&learn=bias"]
    assert alike("keys?learn=bias", others, learn=()) == ["keys"]
    assert alike("keys", others, drawn=True) == ["keys?drawn=1"]
    assert alike("keys", others, keys="random") == [] and alike("keys", others, learn=()) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "lerned",
            "'lerned' cannot be done to filters; learned, frozen, idealized, keys are known",
        ),
        ("frozen?learn=bias", "frozen has no option 'learn'; it has none"),
        ("keys?lern=bias", "keys has no option 'lern'; it has keys, learn, drawn, unit_norm"),
        ("keys?learn=bais", "'bais' cannot be learned; amplitude, bias, sigma are known"),
    ],
)
def test_what_cannot_be_read(asked: str, message: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message.replace("?", r"\?")):
        Treatment.parse(asked)


def test_keys_that_are_not_there() -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"no keys 'lindberg' of 7×7.*random, consensus"):
        key_set("lindberg", 7)
    with pytest.raises(kf.KeyFiltersError, match="none of 9×9"):
        key_set("consensus", 9)
    with pytest.raises(kf.KeyFiltersError, match="only idealised keys have scales"):
        Treatment.parse("keys?keys=random&learn=sigma").apply_(network(), 5, 0)

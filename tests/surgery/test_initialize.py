from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, nn

from keyfilters import init
from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.families import family
from keyfilters.surgery.initialize import SCHEMES, initialize_filters_

MATCHED: dict[tuple[tuple[int, ...], bytes], pd.DataFrame] = {}
EDGE, LAPLACIAN = "x:d y:0", "laplacian"


def drawn(name: str, size: tuple[int, int], *parameters: float) -> np.ndarray:
    values = torch.tensor([parameters], dtype=torch.float64)
    return family(name).render(values, size)[0].numpy()


def trained(size: int = 7) -> FilterBank:
    """A shallow layer of edges, half of each sign, and a deep one of on-centres."""
    signs = np.array([1, -1, 1, -1], np.float32)[:, None, None]
    edges = signs * drawn(EDGE, (size, size), 1.0, 0.8).astype(np.float32)
    centres = np.repeat(-0.5 * drawn(LAPLACIAN, (size, size), 0.9)[None], 4, 0).astype(np.float32)
    dead = np.zeros((1, size, size), np.float32)
    return FilterBank(
        [
            Layer("net", "shallow", np.concatenate([edges, dead]), None, None, 0.0),
            Layer("net", "deep", centres + np.float32(0.2), None, None, 1.0),
        ]
    )


@pytest.fixture(autouse=True)
def matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Match the filters of the small banks once, which takes about a second each."""

    def remembered(filters: np.ndarray, *, null: None) -> pd.DataFrame:
        key = (filters.shape, filters.tobytes())
        if key not in MATCHED:
            MATCHED[key] = match(filters, null=null)
        return MATCHED[key]

    monkeypatch.setattr("keyfilters.receptive_fields.resize.match", remembered)


def options_of(scheme: str) -> dict[str, Any]:
    return {"bank": trained()} if scheme == "idealized" else {}


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in net.state_dict().items()}


def moved(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, x in net.state_dict().items() if not torch.equal(x, before[name])}


def nets(count: int = 2) -> list[nn.Module]:
    """Equal networks of four depthwise layers."""
    made = []
    for _ in range(count):
        torch.manual_seed(0)
        sizes = (7, 7, 5, 3)
        made.append(nn.Sequential(*(nn.Conv2d(12, 12, k, groups=12) for k in sizes)))
    return made


every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@every_scheme
def test_only_depthwise_weights_move_and_every_filter_lives(scheme: str) -> None:
    (net,) = nets(1)
    net.append(nn.Conv2d(12, 4, 1))
    before = state(net)
    report = initialize_filters_(net, scheme, **options_of(scheme))
    assert moved(net, before) == {f"{i}.weight" for i in range(4)}
    assert report["layer"].tolist() == list("0123")
    assert report["size"].tolist() == ["7×7", "7×7", "5×5", "3×3"]
    assert report["filters"].tolist() == [12] * 4
    np.testing.assert_allclose(report["depth"], [0, 1 / 3, 2 / 3, 1])
    assert (report["scheme"] == scheme).all() and (report["left"] == "").all()
    for column, weights in (("rms_before", before), ("rms_after", net.state_dict())):
        expected = [weights[f"{i}.weight"].double().square().mean().sqrt() for i in range(4)]
        np.testing.assert_allclose(report[column], expected)


@every_scheme
def test_seeds_restrictions_and_state_dicts(scheme: str) -> None:
    whole, part, other, generated, again = nets(5)
    options = options_of(scheme)
    initialize_filters_(whole, scheme, seed=5, **options)
    initialize_filters_(part, scheme, seed=5, layers=["2"], **options)
    for i in range(4):
        assert torch.equal(part[i].weight, whole[i].weight) == (i == 2)
    initialize_filters_(other, scheme, seed=6, **options)
    assert not torch.equal(other[0].weight, whole[0].weight)
    if scheme != "idealized":  # a small bank has few models to draw from
        assert not torch.equal(whole[0].weight, whole[1].weight)  # each its own draws
    weights = state(nets(1)[0])
    initialize_filters_(weights, scheme, seed=5, layers=[*"0123"], **options)
    assert all(torch.equal(weights[name], x) for name, x in whole.state_dict().items())
    global_state = torch.get_rng_state()
    for net in (generated, again):
        initialize_filters_(net, scheme, generator=Generator().manual_seed(3), **options)
    assert not moved(generated, again.state_dict())
    assert torch.equal(torch.get_rng_state(), global_state)


@every_scheme
def test_keep_and_numbers_set_the_spread(scheme: str) -> None:
    (net,) = nets(1)
    report = initialize_filters_(net, scheme, std="keep", **options_of(scheme))
    np.testing.assert_allclose(report["rms_after"], report["rms_before"], rtol=1e-5)
    report = initialize_filters_(net, scheme, std=0.03, **options_of(scheme))
    exact = scheme not in ("covariance", "trunc-normal")
    np.testing.assert_allclose(report["rms_after"], 0.03, rtol=1e-5 if exact else 0.5)
    if scheme in ("center-surround", "keys", "idealized", "impulse"):
        for conv in net:
            rms = conv.weight.detach().square().mean((1, 2, 3)).sqrt()
            torch.testing.assert_close(rms, torch.full_like(rms, 0.03))


# -- what the schemes draw


def test_center_surround_passes_its_options_on() -> None:
    net, same = nets()
    initialize_filters_(net, gammas=[0.4], on=0.25, share=0.5, layers=["0"])
    kernel = init.difference_of_gaussians(7, 0.4).float()
    on = [bool(torch.allclose(w[0], kernel)) for w in net[0].weight]
    off = [bool(torch.allclose(w[0], -kernel)) for w in net[0].weight]
    kept = [torch.equal(a, b) for a, b in zip(net[0].weight, same[0].weight, strict=True)]
    assert (sum(on), sum(off), sum(kept)) == (2, 4, 6)


def test_keys_are_those_given_or_the_published_ones() -> None:
    (net,) = nets(1)
    initialize_filters_(net, "keys", std=None)
    for conv in net:
        keys = torch.tensor(KeySet.published("lindeberg2026-B", size=conv.kernel_size[0]).filters)
        product = keys.flatten(1) @ conv.weight.detach().double().flatten(1).T
        np.testing.assert_allclose(product.abs().max(0).values, 1, rtol=1e-6)
        assert (conv.weight.flatten(1).norm(dim=1) - 1).abs().max() < 1e-6
    keys5 = KeySet.published("lindeberg2026-A", size=5)[6:]
    pair = nn.Sequential(nn.Conv2d(4, 4, 2, groups=4), nn.Conv2d(4, 4, 5, groups=4))
    left = initialize_filters_(pair, "keys")["left"]
    assert left[0].startswith("no published keys are 2×2") and left[1] == ""
    report = initialize_filters_(net, "keys", keys=keys5, signs=False, std=None)
    assert report["scheme"].tolist() == ["", "", "keys", ""]
    assert all("5×5" in note for note in report["left"].iloc[[0, 3]])
    chosen = net[2].weight.detach()[:, 0].double().numpy()
    distance = np.abs(chosen[:, None] - keys5.filters).max((2, 3)).min(1)
    assert distance.max() < 1e-7


def test_idealized_follows_the_trained_layer_of_the_nearest_depth() -> None:
    (net,) = nets(1)
    # The network's depths are 0, 1/3, 2/3 and 1.
    initialize_filters_(net, "idealized", bank=trained(), layers=["0", "1"])
    edge = torch.tensor(drawn(EDGE, (7, 7), 1.0, 0.8)).float()
    for conv in net[:2]:
        sign = (conv.weight.detach()[:, 0] / edge).nanmean((1, 2)).sign()
        assert {-1.0, 1.0} == set(sign.tolist())
        filters = sign[:, None, None] * conv.weight.detach()[:, 0]
        torch.testing.assert_close(filters, edge.expand(12, 7, 7), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale_sigma", [True, False])
def test_idealized_renders_other_sizes_with_scaled_or_equal_sigma(scale_sigma: bool) -> None:
    (net,) = nets(1)
    initialize_filters_(net, "idealized", bank=trained(), scale_sigma=scale_sigma, layers=["2"])
    found = match(net[2].weight.detach()[:, 0], null=None)
    factor = 5 / 7 if scale_sigma else 1
    assert set(found["family"]) == {LAPLACIAN} and (found["amplitude"] < 0).all()
    np.testing.assert_allclose(found["sigma_x"], 0.9 * factor, rtol=0.01)
    # The strength is that of the trained filter's model, without its offset.
    norm = 0.5 * np.linalg.norm(drawn(LAPLACIAN, (7, 7), 0.9))
    np.testing.assert_allclose(net[2].weight.detach().flatten(1).norm(dim=1), norm, rtol=0.01)


def test_idealized_prefers_the_kernel_size_and_takes_every_model() -> None:
    (net,) = nets(1)
    fives = trained(5).layers[0]  # edges at depth 0, far from the layer's 2/3
    smooth = np.repeat(drawn("x:0 y:0", (5, 5), 0.7, 0.7)[None], 5, 0).astype(np.float32)
    second = Layer("other", "conv", smooth, None, None, 0.5)
    bank = FilterBank([*trained(7).layers, fives, second])
    initialize_filters_(net, "idealized", bank=bank, layers=["2"])
    found = match(net[2].weight.detach()[:, 0], null=None)
    assert set(found["family"]) == {EDGE, "x:0 y:0"}


def test_idealized_leaves_out_models_that_vanish_in_a_narrow_window() -> None:
    net = nn.Sequential(nn.Conv2d(6, 6, (1, 7), groups=6))
    both = np.stack([drawn("x:0 y:d", (7, 7), 1, 1), drawn(EDGE, (7, 7), 1, 1)])
    bank = FilterBank([Layer("net", "conv", both.astype(np.float32), None, None, 0.0)])
    initialize_filters_(net, "idealized", bank=bank, std=0.1, scale_sigma=False)
    row = drawn(EDGE, (1, 7), 1, 1)
    cosine = net[0].weight.detach()[:, 0, 0].double().numpy() @ row[0] / np.linalg.norm(row)
    np.testing.assert_allclose(np.abs(cosine), 0.1 * math.sqrt(7), rtol=1e-3)
    with pytest.raises(KeyFiltersError, match="seen in this window"):
        vertical = FilterBank([Layer("net", "conv", bank.layers[0].weight[:1], None, None, 0.0)])
        initialize_filters_(net, "idealized", bank=vertical)


def test_covariance_depends_on_the_depth_of_the_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(2000, 2000, 7, groups=2000) for _ in range(2)))
    initialize_filters_(net, "covariance", layers=["1"], schedule=(0.2, 0.3, 0.4))
    found = torch.cov(net[1].weight.detach().double().flatten(1).T)
    torch.testing.assert_close(found, init.filter_covariance(7, 0.7), rtol=0, atol=0.08)


def test_impulses_truncated_normal_and_kaiming_have_their_scales() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2000, 2000, 5, groups=2000))
    initialize_filters_(net, "impulse", scale=3.0)
    assert net[0].weight.sum() == 6000 and (net[0].weight != 0).sum() == 2000
    for scheme, options, expected in (
        ("trunc-normal", {}, 0.02),
        ("kaiming", {}, math.sqrt(2 / (2000 * 25))),
        ("kaiming", {"mode": "fan_in"}, math.sqrt(2 / 25)),
        ("default", {}, 1 / math.sqrt(3 * 25)),
    ):
        report = initialize_filters_(net, scheme, **options)
        assert report["rms_after"][0] == pytest.approx(expected, rel=0.02)
    assert net[0].weight.abs().max() <= 1 / 5  # uniform


def test_default_asks_a_class_with_a_reset_of_its_own() -> None:
    class Own(nn.Conv2d):
        def reset_parameters(self) -> None:
            nn.init.uniform_(self.weight, 2, 3)
            nn.init.zeros_(self.bias)

    net = nn.Sequential(Own(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4))
    nn.init.ones_(net[0].bias)
    initialize_filters_(net, "default")
    assert net[0].weight.min() >= 2 and net[1].weight.max() <= 1 / 3
    assert (net[0].bias == 1).all()
    first = net[0].weight.clone()
    initialize_filters_(net, "default")
    assert torch.equal(net[0].weight, first)


# -- what is left alone, what is refused


def test_layers_that_a_scheme_cannot_fill_are_reported(network: nn.Module) -> None:
    before = state(network)
    report = initialize_filters_(network)
    assert moved(network, before) == {"1.weight", "3.weight", "4.weight", "5.weight"}
    assert (report["left"] == "").all()
    pair = nn.Sequential(nn.Conv2d(8, 8, (2, 7), groups=8), nn.Conv2d(8, 8, 5, groups=8))
    line = initialize_filters_(pair).set_index("layer").loc["0"]
    assert line["scheme"] == "" and line["rms_before"] == line["rms_after"]
    assert line["left"].startswith("2×7 filters have no centre")
    network[5].weight = network[1].weight
    nn.utils.parametrize.register_parametrization(network[3], "weight", nn.Identity())
    notes = initialize_filters_(network, "impulse").set_index("layer")["left"]
    assert notes["1"] == "" and "shares" in notes["5"] and "parametrised" in notes["3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "center-surond"}, "nearest names are: center-surround"),
        ({"scheme": "?"}, "there are: center-surround, keys, idealized"),
        ({"scheme": "impulse", "gammas": [0.5]}, "no option 'gammas', only: scale, std"),
        ({"scheme": "impulse", "bank": trained()}, "no option 'bank'"),
        ({"std": "kept"}, "std is 'kept'"),
        ({"std": 0.0}, "std is 0.0"),
        ({"share": 2}, "share 2 and on 0.5"),
        ({"gammas": [0.5, 1.5]}, "gamma is 1.5"),
        ({"scheme": "idealized"}, "type bank="),
        ({"scheme": "idealized", "bank": FilterBank([])}, "at least 3 taps"),
        ({"scheme": "kaiming", "mode": "fan"}, "mode is 'fan'"),
        ({"layers": ["9"]}, "no depthwise layer is called '9'"),
    ],
)
def test_errors_leave_the_model_unchanged(arguments: dict[str, Any], message: str) -> None:
    (net,) = nets(1)
    before = state(net)
    with pytest.raises(KeyFiltersError, match=message.replace("?", r"\?")):
        initialize_filters_(net, **arguments)
    assert not moved(net, before)


def test_nothing_to_keep_and_nothing_to_write() -> None:
    (net,) = nets(1)
    nn.init.zeros_(net[0].weight)
    report = initialize_filters_(net, std="keep")
    assert report["left"][0] == "its root mean square is 0.0, which cannot be kept"
    nn.init.constant_(net[1].weight, math.nan)
    report = initialize_filters_(net, share=0.5)
    assert report["left"][1] == "its filters would not be finite"
    with pytest.raises(NoFiltersError):
        initialize_filters_(nn.Linear(2, 2))

"""Surgery on convolutions of one dimension, and of windows 1×k, k×1, rectangular and even."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.input_covariance import patches
from keyfilters.keyset import KeySet
from keyfilters.tracing import conv_calls
from tests.surgery.networks import batches


class Signals(nn.Module):
    """A network on signals ``(n, 4, length)`` with depthwise filters of 7, 4 and 15 taps."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv1d(4, 8, 1)
        self.odd = nn.Conv1d(8, 8, 7, groups=8, padding=3)
        self.norm = nn.BatchNorm1d(8)
        self.even = nn.Conv1d(8, 16, 4, groups=8, stride=2, bias=False)  # channel multiplier 2
        self.last = nn.BatchNorm1d(16)
        self.wide = nn.Conv1d(16, 16, 15, groups=16, padding=14, dilation=2)
        self.head = nn.Conv1d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.odd(self.first(x))))
        return self.head(torch.relu(self.wide(self.last(self.even(x))))).mean(-1)


SIZES = {"odd": (1, 7), "even": (1, 4), "wide": (1, 15)}


def signals(count: int = 12) -> Tensor:
    noise = torch.randn(count, 4, 44, generator=torch.Generator().manual_seed(1))
    return nn.functional.avg_pool1d(noise, 5, stride=1) * 2 + 0.3  # neighbours are alike


@pytest.fixture
def network() -> Signals:
    net = Signals()
    with torch.no_grad():
        for _ in range(20):
            net(signals())
    return net.eval()


def keys_of_all(count: int = 4) -> list[KeySet]:
    return [KeySet.random(count, size) for size in SIZES.values()]


def test_one_dimension_is_read_as_a_row(network: Signals) -> None:
    bank = kf.read(network)
    assert {layer.name: layer.size for layer in bank.layers} == SIZES
    assert [layer.ndim for layer in bank.layers] == [1, 1, 1]
    assert [layer.depth for layer in bank.layers] == [0.0, 0.5, 1.0]
    assert [layer.stride for layer in bank.layers] == [(1, 1), (1, 2), (1, 1)]
    assert bank.layers[2].dilation == (1, 2) and bank.layers[2].padding == (0, 14)
    for layer in bank.layers:
        stored = getattr(network, layer.name).weight.detach().numpy()
        np.testing.assert_array_equal(layer.weight, stored)
    skipped = kf.read(nn.Sequential(nn.Conv3d(8, 8, 3, groups=8), *network.children())).skipped
    assert any("3-D" in reason for _, reason in skipped)


def test_rows_are_replaced_by_the_nearest_on_the_keys(network: Signals) -> None:
    sets = keys_of_all()
    old = {name: getattr(network, name).weight.detach().double().numpy() for name in SIZES}
    plain = {name: x.clone() for name, x in network.state_dict().items()}
    report = kf.replace_filters_(network, sets).set_index("layer")
    assert (report["left"] == "").all() and report["size"].tolist() == ["1×7", "1×4", "1×15"]
    for keys, (name, before) in zip(sets, old.items(), strict=True):
        after = getattr(network, name).weight.detach().numpy()
        assert after.shape == before.shape  # (C, 1, k)
        expected = keys.reconstruct(*keys.assign(before)[:3])
        np.testing.assert_allclose(after, expected, atol=1e-6)
    done = kf.replace_filters_(plain, sets, layers=list(SIZES))  # as a state dict
    assert (done["left"] == "").all()
    for name, tensor in network.state_dict().items():
        assert torch.equal(plain[name], tensor)


def test_keys_that_hold_the_filters_change_no_output(network: Signals) -> None:
    before = network(signals())
    own = {layer.name: KeySet.from_filters(layer.weight) for layer in kf.read(network).layers}
    report = kf.replace_filters_(network, own, images=signals())
    torch.testing.assert_close(network(signals()), before, rtol=2e-4, atol=2e-5)
    assert (report["output_error"] < 1e-6).all()


def test_outputs_suffer_less_with_the_inputs_known(network: Signals) -> None:
    keys, lost = KeySet.random(4, (1, 7)), []
    entering = network.first(signals()).detach()
    before = network.odd(entering).detach()
    for options in ({}, {"images": signals(), "ridge": 1e-6, "recalibrate": False}):
        replaced = copy.deepcopy(network)
        kf.replace_filters_(replaced, keys, layers=["odd"], **options)
        change = replaced.odd(entering).detach() - before
        lost.append(change.var(dim=(0, 2), correction=0))  # of each channel, its mean aside
    assert (lost[1] <= lost[0] * (1 + 1e-4)).all() and lost[1].sum() < 0.9 * lost[0].sum()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(3, 6, 4, groups=3, stride=2, padding=3, bias=False),
        nn.Conv1d(3, 3, 4, groups=3, padding="same", dilation=2, bias=False),
        nn.Conv2d(3, 3, (1, 5), groups=3, padding=(0, 2), bias=False),
        nn.Conv2d(3, 3, (4, 2), groups=3, stride=(2, 1), bias=False),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_patches_are_what_a_filter_sees(conv: nn.Module) -> None:
    shape = (2, 3, 17) if isinstance(conv, nn.Conv1d) else (2, 3, 9, 8)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    [call] = conv_calls(conv, [conv], images)
    output = conv(images).flatten(2)
    generator = torch.Generator().manual_seed(3)
    seen = patches(call, 10**6, generator)
    made = torch.bmm(call.weight.flatten(1)[:, None], seen)[:, 0]
    places = torch.randperm(output.shape[2], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(made, output[:, :, places].transpose(0, 1).flatten(1))


def test_rows_stay_frozen_in_training(network: Signals) -> None:
    frozen = kf.freeze_filters_(network, batchnorm="eval", bias=True)
    assert frozen.table["batchnorm"].tolist() == ["norm", "last", ""]
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        network(signals()).square().sum().backward()
        optimiser.step()
    frozen.check()
    with torch.no_grad():
        network.wide.weight[0, 0, 3] += 1e-3
    with pytest.raises(kf.KeyFiltersError, match=r"wide\.weight"):
        frozen.check()


def test_rows_are_transferred_between_rows_and_windows(network: Signals) -> None:
    other = Signals(seed=5)
    kf.transfer_filters_(network, kf.read(other))
    for name in SIZES:
        assert torch.equal(getattr(network, name).weight, getattr(other, name).weight)
    two = nn.Conv2d(8, 8, 7, groups=8)
    report = kf.transfer_filters_(network, kf.read(two), layers=["odd"])
    assert report.set_index("layer").loc["odd", "how"] == "cropped"
    assert torch.equal(network.odd.weight, two.weight[:, :, 3])
    back = kf.transfer_filters_(two, kf.read(network))
    assert back["source"].tolist() == ["odd"] and back["how"].tolist() == ["padded"]
    assert torch.equal(two.weight[:, :, 3], network.odd.weight)


@pytest.mark.parametrize(
    "scheme",
    ["center-surround", "keys", "covariance", "impulse", "trunc-normal", "default", "kaiming"],
)
def test_every_scheme_fills_every_window(network: Signals, scheme: str) -> None:
    shapes = [(1, 5), (5, 1), (4, 4), (3, 6), (6, 6)]
    wide = nn.Sequential(*(nn.Conv2d(12, 12, shape, groups=12) for shape in shapes))
    for net in (network, wide):
        before = [x.detach().clone() for x in net.parameters() if x.ndim > 2]
        report = kf.initialize_filters_(net, scheme, std=0.1)
        assert (report["left"] == "").all()
        np.testing.assert_allclose(report["rms_after"], 0.1, rtol=0.35)
        after = [x for x in net.parameters() if x.ndim > 2]
        depthwise = [x for x in after if x.shape[1] == 1]
        assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == len(
            depthwise
        )


def test_centre_and_surround_of_a_row() -> None:
    row = kf.init.difference_of_gaussians((1, 9), 1 / 3)
    assert row.shape == (1, 9) and row.sum().abs() < 1e-12
    inside = (torch.arange(9) - 4).abs() < 5 / 3
    assert row[0, inside].sum() == pytest.approx(1) and (row[0, 4] == row.max()).item()
    wide = kf.init.difference_of_gaussians((4, 7), 1 / 2)
    assert torch.equal(wide, wide.flip(0)) and torch.equal(wide, wide.flip(1))
    weight = kf.init.center_surround_(torch.empty(12, 1, 3))  # of Mamba's and Conformer's kind
    assert ((weight[:, 0, 1] > 0) == (weight[:, 0, 0] < 0)).all()


def test_idealised_models_of_rows_and_even_windows(network: Signals) -> None:
    bank = kf.read(network)
    report = kf.initialize_filters_(network, "idealized", bank=bank, layers=["odd"], std=0.05)
    assert report.set_index("layer").loc["odd", "left"] == ""
    assert kf.match(network.odd.weight, null=None)["r2"].min() > 0.999
    even = nn.Sequential(nn.Conv2d(8, 8, 4, groups=8), nn.Conv2d(8, 8, 2, groups=8))
    table = kf.replace_filters_(even, "idealized").set_index("layer")
    assert table.loc["0", "left"] == "" and "2×2" in table.loc["1", "left"]
    assert 0.3 < table.loc["0", "explained"] <= 1


def test_rows_are_parametrised_trained_and_baked(network: Signals) -> None:
    names = list(network.state_dict())
    for keys in keys_of_all():
        kf.parametrize_filters_(network, keys, learn=("amplitude", "bias"))
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(3):
        network(signals()).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    network.eval()
    before = network(signals())
    assert kf.bake_filters_(network) == list(SIZES)
    assert torch.equal(network(signals()), before) and list(network.state_dict()) == names
    for keys, name in zip(keys_of_all(), SIZES, strict=True):
        weight = getattr(network, name).weight
        assert weight.shape == (weight.shape[0], 1, keys.window[1]) and weight.requires_grad
        left = keys.assign(weight.detach()).residual
        assert left.max() < 1e-5 * float(weight.detach().abs().max()) * 10


def test_published_keys_of_a_row_are_kept_with_unit_norm(network: Signals) -> None:
    keys = KeySet.published("lindeberg2026-B", size=(1, 7))
    kf.parametrize_filters_(network, keys, unit_norm=True)
    norm = network.odd.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, torch.ones(8))
    with pytest.raises(kf.KeyFiltersError, match="scales"):
        kf.parametrize_filters_(Signals(), keys, learn=("sigma",))


class Doubled(nn.Module):
    """Two convolutions, one with a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(self.conv(x), 2 * self.conv.weight, groups=6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_ways_to_store_a_row() -> None:
    def normed() -> nn.Conv1d:
        return nn.utils.weight_norm(nn.Conv1d(6, 6, 5, groups=6))  # type: ignore[no-any-return]

    with pytest.warns(FutureWarning, match="weight_norm"):
        old = normed()
    new = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 5, groups=6))
    keys = KeySet.random(3, (1, 5))
    for conv in (old, new):
        net = nn.Sequential(conv, nn.ReLU())
        assert (kf.replace_filters_(net, keys)["left"] == "").all()
        net(torch.zeros(1, 6, 9))
        assert keys.assign(conv.weight.detach()).residual.max() < 1e-5
    script = torch.jit.script(nn.Sequential(nn.Conv1d(6, 6, 5, groups=6)))
    assert [layer.ndim for layer in kf.read(script).layers] == [1]
    program = torch.export.export(Doubled(), (torch.zeros(1, 6, 9),))
    bank = kf.read(program)  # one weight stored, the other computed
    assert [layer.ndim for layer in bank.layers] == [1] and len(bank.skipped) == 1


class Inception(nn.Module):
    """The token mixer of InceptionNeXt: an identity, a square, a row and a column side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.row = nn.Conv2d(2, 2, (1, 11), padding=(0, 5), groups=2)
        self.column = nn.Conv2d(2, 2, (11, 1), padding=(5, 0), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.chunk(4, dim=1)
        return torch.cat([a, self.square(b), self.row(c), self.column(d)], dim=1)


def test_rows_and_columns_beside_squares() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Inception(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 2, groups=8)).eval()
    before = net(batches(6))
    names = ["lindeberg2026-B"] * 3
    sets = [KeySet.published(n, s) for n, s in zip(names, (3, (1, 11), (11, 1)), strict=True)]
    sets.append(KeySet.random(3, 2))
    assert [len(keys) for keys in sets] == [8, 5, 5, 3]
    report = kf.replace_filters_(net, sets, images=batches(6)).set_index("layer")
    assert (report["left"] == "").all()
    assert report["size"].tolist() == ["3×3", "1×11", "11×1", "2×2"]
    assert not torch.equal(net(batches(6)), before)
    residual = sets[2].assign(net[0].column.weight.detach()[:, 0]).residual
    assert residual.max() < 1e-6


def test_a_real_mixer_of_rows_and_columns() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("inception_next_atto", pretrained=False, num_classes=3)
    bank = kf.read(net)
    assert set(bank.sizes) == {(3, 3), (1, 9), (9, 1)}
    report = kf.replace_filters_(net, "idealized", layers="stages.0.*")
    assert (report["explained"][report["left"] == ""] > 0.05).all()
    sizes = set(report["size"][report["left"] == ""])
    assert sizes == {"3×3", "1×9", "9×1"}

"""Every way of storing a kernel: what is read is what is convolved with, and writing it holds."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import CondConv2d, Conv2dSame, MixedConv2d, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import keyfilters as kf
from keyfilters.depthwise import Kernel, kernels
from keyfilters.surgery import freeze_filters_

KEYS = kf.KeySet.random(4, size=5)
Make = Callable[[], nn.Module]


class Masked(nn.Conv2d):
    """A class of its own with a kernel that is not the stored weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.abs(), self.bias)


class Windowed(nn.Conv2d):
    """A class of its own whose kernel is the stored weight times a buffer."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("window", torch.linspace(0, 1, 25).reshape(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.window, self.bias)


class Scaled(nn.Conv2d):
    """A class that convolves with what only its network knows."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * scale, self.bias)


class Spectrum(nn.Conv2d):
    """A class that convolves without ``conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x)).real


def plain(kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    torch.manual_seed(0)
    return kind(6, 6, 5, groups=6, padding=2, bias=False)


def hooked(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(nn.utils, name)(plain())


WAYS: dict[str, Make] = {
    "plain": plain,
    "same": lambda: plain(Conv2dSame),
    "weight_norm": lambda: parametrizations.weight_norm(plain()),
    "spectral_norm": lambda: parametrizations.spectral_norm(plain()),
    "orthogonal": lambda: parametrizations.orthogonal(plain()),
    "hooked weight_norm": lambda: hooked("weight_norm"),
    "hooked spectral_norm": lambda: hooked("spectral_norm"),
    "pruned": lambda: prune.random_unstructured(plain(), "weight", amount=0.3),
    "standardised": lambda: plain(ScaledStdConv2d),
    "standardised without gain": lambda: plain(StdConv2d),
    "own class": lambda: plain(Masked),
    "own class with a buffer": lambda: plain(Windowed),
}
TAKES_ANY = ("plain", "same", "weight_norm", "hooked weight_norm")


def convolved_with(conv: nn.Module) -> np.ndarray:
    """What a unit impulse in the middle of every channel shows, turned back."""
    images = torch.zeros(1, 6, 9, 9)
    images[:, :, 4, 4] = 1
    with torch.no_grad():
        response = conv.eval()(images)[0, :, 2:7, 2:7]
    if conv.bias is not None:
        response = response - conv.bias.detach()[:, None, None]
    return response.flip(1, 2).numpy()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_is_what_is_convolved_with(way: str) -> None:
    conv = WAYS[way]()
    net = nn.Sequential(conv, nn.ReLU()).train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    [layer] = kf.read(net).layers
    assert net.training and all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
    np.testing.assert_allclose(layer.weight, convolved_with(conv), atol=1e-6)
    assert ("convolved with" in layer.note) == (way not in ("plain", "same"))
    assert way != "own class" or "Masked" in layer.note


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_convolved_with_or_refused_unchanged(way: str) -> None:
    conv = WAYS[way]()
    net = nn.Sequential(conv).eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    wanted = torch.randn(6, 1, 5, 5) + 0.3
    [kernel] = kernels(net)
    if way in TAKES_ANY:
        kernel.plan(wanted)()
        # At once, also where the stored tensors make it: not only after the next pass.
        torch.testing.assert_close(conv.weight.detach(), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(kernel.read(), wanted, atol=1e-5, rtol=0)
        np.testing.assert_allclose(convolved_with(conv), wanted[:, 0], atol=1e-5)
        return
    assert kernel.form is not None
    with pytest.raises(kf.KeyFiltersError, match=r"type |cannot make") as refused:
        kernel.plan(wanted)()
    assert kernel.form.undo in str(refused.value) and kernel.name in str(refused.value)
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())


def test_a_standardised_convolution_takes_filters_of_mean_zero() -> None:
    conv = plain(ScaledStdConv2d)
    report = kf.replace_filters_(nn.Sequential(conv), KEYS)
    assert report["left"].tolist() == [""]
    found = convolved_with(conv)
    index, a, b, _ = KEYS.assign(found)
    np.testing.assert_allclose(found, KEYS.reconstruct(index, a, b), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_frozen_kernels_stay_through_training_steps(way: str) -> None:
    conv = WAYS[way]()
    net = nn.Sequential(conv, nn.Conv2d(6, 2, 1))
    if "spectral" in way:
        with pytest.raises(kf.KeyFiltersError, match="no frozen parameter holds still"):
            freeze_filters_(net)
        assert all(x.requires_grad for x in net.parameters())
        return
    frozen = freeze_filters_(net)
    before = convolved_with(conv)
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.1)
    net(torch.randn(2, 6, 8, 8)).square().sum().backward()
    optimiser.step()
    frozen.check()
    np.testing.assert_array_equal(convolved_with(conv), before)
    assert kf.freeze_filters_(net) and kf.surgery.unfreeze_filters_(net) == ["0"]
    assert any(x.requires_grad for x in conv.parameters())


@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm", "own class", "pruned"])
def test_computed_kernels_are_not_put_on_keys(way: str) -> None:
    net = nn.Sequential(WAYS[way]())
    with pytest.raises(kf.KeyFiltersError, match=r"parametrised already|cannot be put on keys"):
        kf.parametrize_filters_(net, KEYS)
    with pytest.raises(kf.KeyFiltersError, match=r"remove|parametrize_filters_"):
        kf.bake_filters_(net)


def test_classes_that_cannot_be_followed_are_passed_over_with_a_reason() -> None:
    torch.manual_seed(0)
    experts = CondConv2d(6, 6, 5, groups=6, num_experts=2)
    computed = plain()
    computed.source = nn.Parameter(computed.weight.detach())
    del computed.weight
    computed.register_forward_pre_hook(lambda conv, _: setattr(conv, "weight", conv.source.abs()))
    net = nn.ModuleList([plain(), plain(Spectrum), experts, plain(Scaled), computed])
    bank = kf.read(net)
    assert [(x.name, x.depth) for x in bank.layers] == [("0", 0.0)]
    reasons = dict(bank.skipped)
    assert "Spectrum does not convolve with one kernel" in reasons["ModuleList/1"]
    assert "mixes its experts" in reasons["ModuleList/2"]
    assert "Scaled could not be run" in reasons["ModuleList/3"]
    assert "something computes it" in reasons["ModuleList/4"]
    report = kf.replace_filters_(net, KEYS)
    assert report["left"].astype(bool).tolist().count(True) == 4
    with pytest.raises(kf.KeyFiltersError, match="layer 1 cannot be put on keys"):
        kf.parametrize_filters_(net, KEYS, layers="*")
    report = kf.parametrize_filters_(net, KEYS)
    assert report["left"].astype(bool).tolist() == [False] + [True] * 4


def test_hooks_of_ones_own_hide_no_kernel() -> None:
    conv = plain()
    conv.register_forward_pre_hook(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(conv)
    [layer] = kf.read(nn.Sequential(conv)).layers
    assert "weight_norm" in layer.note
    np.testing.assert_allclose(layer.weight, convolved_with(conv), atol=1e-6)


def test_mixed_convolutions_are_read_size_by_size() -> None:
    net = nn.Sequential(MixedConv2d(8, 8, kernel_size=[3, 5], depthwise=True))
    assert kf.read(net).sizes == {(3, 3): 4, (5, 5): 4}


def test_fixed_filters_and_tables_are_no_layers() -> None:
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("filt", torch.ones(6, 1, 3, 3))

    table = nn.Module()
    table.positions = nn.Parameter(torch.ones(1, 6, 3, 3))
    net = nn.Sequential(plain(), Blur(), table)
    bank = kf.read(net)
    assert len(bank.layers) == len(bank.skipped) == 1
    assert "buffer, not trained" in dict(bank.skipped)["Sequential/1"]
    state = {**net.state_dict(), "mask": torch.ones(6, 1, 3, 3)}
    by_name = kf.read(state)
    assert [layer.name for layer in by_name.layers] == ["0"]
    assert {name for name, _ in by_name.skipped} == {"state_dict/1.filt", "state_dict/mask"}


def test_ties_are_told_by_the_tensors_that_live() -> None:
    first, second, third = (plain() for _ in range(3))
    second.weight = first.weight
    third.weight = nn.Parameter(first.weight.data)
    net = nn.Sequential(first, second, third)
    assert [x.name for x in kf.read(net).layers] == ["0"]
    for conv in (first, second, third):
        conv.weight = nn.Parameter(torch.randn(6, 1, 5, 5))
        parametrizations.weight_norm(conv)
    for _ in range(3):  # what is drawn at each access may get the same address
        assert len(kf.read(net).layers) == 3


def test_filters_that_share_memory_are_left_alone() -> None:
    net = nn.Sequential(plain(), plain(), plain())
    net[1].weight = nn.Parameter(torch.randn(1, 1, 5, 5).expand(6, 1, 5, 5))
    block = torch.randn(12, 1, 5, 5)
    net[2].weight = nn.Parameter(block[6:])  # a view of its own is as good as any
    left = kf.replace_filters_(net, KEYS).set_index("layer")["left"]
    assert "share memory" in left["1"] and left["0"] == left["2"] == ""
    with pytest.raises(kf.KeyFiltersError, match="share memory"):
        kf.replace_filters_(net[1:2], KEYS)
    left = kf.parametrize_filters_(net, KEYS).set_index("layer")["left"]
    assert "share memory" in left["1"] and left["0"] == left["2"] == ""


def test_no_data_yet() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(plain(), plain(Masked))
    for call in (
        lambda: kf.read(empty),
        lambda: kf.replace_filters_(empty, KEYS),
        lambda: kf.initialize_filters_(empty),
        lambda: freeze_filters_(empty),
        lambda: kf.read(empty.state_dict()),
    ):
        with pytest.raises(kf.KeyFiltersError, match="meta device"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyConv2d(6, 5, groups=6))
        dense = nn.Sequential(nn.LazyConv2d(6, 5), plain())
    with pytest.raises(kf.KeyFiltersError, match="before its first forward pass"):
        kf.replace_filters_(lazy, KEYS)
    # One group can never become depthwise, so nothing is left alone.
    assert kf.replace_filters_(dense, KEYS)["layer"].tolist() == ["1"]
    with pytest.raises(kf.KeyFiltersError, match="0: lazy"):
        kernels(lazy)[0].read()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
    ],
)
def test_wrappers_change_no_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), plain(), nn.BatchNorm2d(6))
    wrapped = wrap(net)
    assert [x.name for x in kf.read(wrapped).layers] == ["1"]
    assert kf.read(wrapped).models == ["Sequential"]
    kf.replace_filters_(wrapped, KEYS, images=torch.randn(2, 3, 9, 9))
    frozen = kf.freeze_filters_(wrapped, batchnorm="frozen")
    assert frozen.table[["layer", "batchnorm"]].values.tolist() == [["1", "2"]]
    frozen.check()
    kf.surgery.unfreeze_filters_(wrapped)


def test_a_compiled_part_changes_no_name() -> None:
    net = nn.Sequential(nn.Sequential(plain()), plain())
    net[0] = torch.compile(net[0], backend="eager")
    assert [x.name for x in kf.read(net).layers] == ["0.0", "1"]
    frozen = kf.freeze_filters_(net)
    frozen.check()


def test_quantised_convolutions_are_dequantised() -> None:
    pytest.importorskip("torch.ao.nn.quantized")
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv = torch.ao.nn.quantized.Conv2d(6, 6, 5, groups=6)
        weight = torch.quantize_per_tensor(torch.randn(6, 1, 5, 5), 0.01, 0, torch.qint8)
        conv.set_weight_bias(weight, None)
        net = nn.Sequential(conv)
        [layer] = kf.read(net).layers
        np.testing.assert_array_equal(layer.weight, weight.dequantize()[:, 0])
        [stored] = kf.read({"0.weight": weight}).layers
        np.testing.assert_array_equal(stored.weight, layer.weight)
        for refused in (net, {"first.weight": torch.ones(2, 2, 3, 3), "0.weight": weight}):
            with pytest.raises(kf.KeyFiltersError, match="quantised"):
                kf.replace_filters_(refused, KEYS)


def test_programs_are_read_with_their_geometry() -> None:
    conv = nn.Conv2d(6, 12, 5, groups=6, stride=2, dilation=(1, 2), padding=4)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), conv).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = [(6, (5, 5), (2, 2), (1, 2), 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        programs = [
            torch.jit.script(net),
            torch.jit.trace(net, images),
            torch.export.export(net, (images,)),
            torch.export.export(net, (images,)).module(),
            torch.fx.symbolic_trace(net),
        ]
        for program in programs:
            bank = kf.read(program)
            found = [(6, x.size, x.stride, x.dilation, x.multiplier) for x in bank.layers]
            assert found == expected
            assert [x.name for x in bank.layers] == ["1"]
            np.testing.assert_array_equal(bank.layers[0].weight, conv.weight[:, 0].detach())
            assert len(bank.skipped) == 1
        for call in (
            lambda: kf.replace_filters_(programs[0], KEYS, images=images),
            lambda: kf.parametrize_filters_(programs[3], KEYS),
            lambda: kf.freeze_filters_(programs[0]),
            lambda: kf.freeze_filters_(programs[3]),
        ):
            with pytest.raises(kf.KeyFiltersError, match=r"program|scripted module"):
                call()
        kf.replace_filters_(programs[0], KEYS)
        index, a, b, _ = KEYS.assign(programs[0].state_dict()["1.weight"][:, 0].numpy())
        new = kf.read(programs[0]).layers[0].weight
        np.testing.assert_allclose(new, KEYS.reconstruct(index, a, b), atol=1e-5)


class Functional(nn.Module):
    """A convolution that tells its geometry in its code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, None, [2, 1], [1, 1], [1, 2], 6)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.sum()


class Table(nn.Module):
    """A module that is looked up and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1, 3, 3))

    @torch.jit.export
    def look_up(self, x: Tensor) -> Tensor:
        return x + self.weight.mean()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.product, self.table = Functional(), Product(), Table()

    def forward(self, x: Tensor) -> Tensor:
        return self.table.look_up(self.product(self.conv(x)))


def test_scripted_modules_are_read_by_what_they_call() -> None:
    net = Mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = kf.read(torch.jit.script(net))
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, net.conv.weight.detach()[:, 0])
    assert (layer.name, layer.stride, layer.dilation) == ("conv", (2, 1), (1, 2))
    assert [name.rpartition("/")[2] for name, _ in bank.skipped] == ["product", "table"]
    assert all("calls no convolution" in reason for _, reason in bank.skipped)


def one_dimensional() -> tuple[nn.Module, Tensor]:
    conv = nn.Conv1d(6, 12, 5, groups=6, stride=2, dilation=3, padding=4)
    return nn.Sequential(nn.Conv1d(3, 6, 1), conv).eval(), torch.randn(1, 3, 40)


def turned_round() -> tuple[nn.Module, Tensor]:
    """Upsampling, depthwise in all but that it is transposed; 2 filters a channel."""
    up = nn.ConvTranspose2d(6, 12, 5, groups=6, stride=2)
    return nn.Sequential(plain(), up).eval(), torch.randn(1, 6, 9, 9)


def of_volumes() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv3d(6, 6, 3, groups=6)).eval(), torch.randn(1, 6, 5, 5, 5)


def program(way: str, net: nn.Module, images: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way == "scripted":
            return torch.jit.script(net)
        if way == "traced":
            return torch.jit.trace(net, images)
        if way == "module":
            return net
        torch.compiler.reset()  # older versions count the exports of one process, and refuse
        exported = torch.export.export(net, (images,))
        # Decomposed, all convolutions are aten.convolution.
        return (exported.run_decompositions() if way == "decomposed" else exported).module()


def geometry(kernel: Kernel) -> tuple[object, ...]:
    shape = kernel.shape
    assert shape is not None
    return shape.kernel, shape.in_channels, shape.out_channels, shape.groups, shape.transposed


@pytest.mark.parametrize("way", ["module", "scripted", "traced", "exported", "decomposed"])
def test_programs_tell_every_kind_of_convolution_as_the_module_does(way: str) -> None:
    net, signals = one_dimensional()
    pointwise, row = kernels(program(way, net, signals))
    assert geometry(row) == ((1, 5), 6, 12, 6, False) and row.depthwise and row.ndim == 1
    assert (row.stride, row.dilation) == ((1, 2), (1, 3))
    assert torch.equal(row.read(), net[1].weight[:, :, None])
    assert geometry(pointwise) == ((1, 1), 3, 6, 1, False) and not pointwise.depthwise
    net, images = turned_round()
    upsampling = program(way, net, images)
    first, up = kernels(upsampling)
    assert first.depthwise and geometry(first) == ((5, 5), 6, 6, 6, False)
    assert "transposed" in up.not_depthwise and geometry(up) == ((5, 5), 6, 12, 6, True)
    assert [x.name for x in kf.read(upsampling).layers] == ["0"]
    net, images = of_volumes()
    [volume] = kernels(program(way, net, images))
    assert "3-D" in volume.not_depthwise and geometry(volume) == ((3, 3, 3), 6, 6, 6, False)


def test_a_weight_that_a_program_computes_is_passed_over_with_a_reason() -> None:
    net = nn.Sequential(plain(), plain(Masked)).eval()
    bank = kf.read(program("exported", net, torch.randn(1, 6, 9, 9)))
    assert [x.name for x in bank.layers] == ["0"]
    [(_, reason)] = bank.skipped
    assert "computed" in reason


def test_blocks_that_fuse_into_a_new_module_are_read_fused() -> None:
    from timm.models.repvit import RepVggDw

    torch.manual_seed(0)
    block = RepVggDw(6, 3)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), block)
    for _ in range(3):
        net(torch.randn(4, 3, 9, 9))
    [one] = kf.read(net, fused=True).layers
    # The response to an impulse in one channel is the kernel turned round, in that channel only.
    block.eval()
    impulse, rest = torch.zeros(1, 6, 5, 5), torch.zeros(1, 6, 5, 5)
    impulse[:, :, 2, 2] = 1
    with torch.no_grad():
        response = (block(impulse) - block(rest))[0, :, 1:4, 1:4].flip(1, 2)
    np.testing.assert_allclose(one.weight, response, atol=1e-6)
    assert one.name == "1" and isinstance(net[1], RepVggDw)


def test_branches_are_noted_and_read_fused() -> None:
    from timm.models.byobnet import MobileOneBlock

    torch.manual_seed(0)
    block = MobileOneBlock(6, 6, 5, group_size=1, num_conv_branches=3)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), block)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    branches = kf.read(net).layers
    assert len(branches) == 3 and all("of 3 of 1" in x.note for x in branches)
    [one] = kf.read(net, fused=True).layers
    assert one.size == (5, 5) and "fused" in one.note
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
    images = torch.randn(1, 6, 9, 9)
    block.eval()
    block.act = nn.Identity()
    with torch.no_grad():
        output = block(images)
        block.reparameterize()
        torch.testing.assert_close(block(images), output, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(one.weight, block.reparam_conv.weight[:, 0].detach(), atol=1e-6)


class Block(nn.Module):
    """Two branches that are kept apart in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = plain(), plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)

    def merge(self) -> None:
        with torch.no_grad():
            self.one.weight += self.other.weight
        self.other = nn.Identity()
        self.forward = self.one.forward  # type: ignore[method-assign]


class InPlace(Block):
    def fuse(self) -> None:
        self.merge()


class Deployed(Block):
    def switch_to_deploy(self) -> None:
        self.merge()


class Unfusable(Block):
    def fuse(self) -> None:
        raise RuntimeError("no such\nbranch")


@pytest.mark.parametrize("kind", [InPlace, Deployed])
def test_blocks_that_fuse_in_place_are_read_fused(kind: type[Block]) -> None:
    block = kind()
    expected = (block.one.weight + block.other.weight).detach()[:, 0].clone()
    [layer] = kf.read(nn.Sequential(block), fused=True).layers
    np.testing.assert_array_equal(layer.weight, expected)
    assert len(kf.read(nn.Sequential(block)).layers) == 2


def test_blocks_that_do_not_fuse_are_told() -> None:
    net = nn.Sequential(Unfusable())
    with pytest.raises(kf.KeyFiltersError, match=r"no such.*fused=False"):
        kf.read(net, fused=True)
    assert len(kf.read(net).layers) == 2


def test_branches_are_those_of_their_block_and_not_of_a_stage_that_fuses_all() -> None:
    class Stage(nn.Sequential):
        def fuse(self) -> None:
            for block in self:
                block.fuse()

    net = nn.Sequential(Stage(*[InPlace() for _ in range(9)]))
    layers = kf.read(net).layers
    assert len(layers) == 18
    for i, layer in enumerate(layers):
        assert f"branch {i % 2 + 1} of 2 of 0.{i // 2}," in layer.note


def test_order_and_depth_are_those_of_the_forward_pass() -> None:
    class Backwards(nn.Module):
        def __init__(self, works: bool) -> None:
            super().__init__()
            self.last, self.first = plain(), plain()
            self.stem = nn.Conv2d(3, 6, 1)
            self.works, self.calls = works, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if not self.works:
                raise RuntimeError("a secret input is needed")
            torch.rand(1)
            return self.last(self.first(self.stem(x)))

    net = Backwards(works=True).train()
    net.register_forward_hook(lambda *_: pytest.fail("the user's hook was called"))
    state = torch.random.get_rng_state()
    bank = kf.read(net)
    assert [(x.name, x.depth, x.note) for x in bank.layers] == [("first", 0, ""), ("last", 1, "")]
    assert net.calls == 0 and net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert kf.replace_filters_(net, KEYS)["layer"].tolist() == ["first", "last"]
    unknown = [Backwards(works=False), Backwards(works=True), nn.Sequential(plain(), plain())]
    unknown[1].lock = threading.Lock()  # which cannot be copied
    for conv in unknown[2]:
        weight = conv.weight.detach()
        del conv.weight
        conv.register_buffer("weight", weight)  # no parameter says what the input is like
    for net, names in zip(unknown, (["last", "first"], ["last", "first"], ["0", "1"]), strict=True):
        layers = kf.read(net).layers
        assert [x.name for x in layers] == names
        assert all("order of registration" in x.note for x in layers)
    with pytest.raises(kf.KeyFiltersError, match="cannot be copied"):
        kf.replace_filters_(unknown[1], KEYS, images=torch.ones(1, 3, 9, 9))


def test_networks_of_one_input_size_are_tried_on_that_size_alone() -> None:
    seen: list[tuple[int, ...]] = []

    class Fixed(nn.Module):
        pretrained_cfg = {"input_size": (3, 37, 41), "fixed_input_size": True}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.stem = plain(), plain(), nn.Conv2d(3, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[1:]))
            return self.last(self.first(self.stem(x)))

    assert [x.name for x in kf.read(Fixed()).layers] == ["first", "last"]
    assert set(seen) == {(3, 37, 41)}


def test_state_dicts_tell_kernels_that_several_tensors_make() -> None:
    for way in ("weight_norm", "spectral_norm", "hooked weight_norm", "pruned"):
        net = nn.Sequential(nn.Conv2d(3, 6, 1), WAYS[way]())
        [layer] = kf.read(net.state_dict()).layers
        assert layer.name == "1" and "several stored tensors" in layer.note
        np.testing.assert_allclose(layer.weight, kf.read(net).layers[0].weight, atol=1e-6)
    keys = kf.KeySet.published("lindeberg2026-B", 5)
    for learn in (("bias",), ("amplitude", "bias", "sigma")):
        for unit_norm in (False, True):
            net = nn.Sequential(nn.Conv2d(3, 6, 1), plain())
            kf.parametrize_filters_(net, keys, learn, unit_norm=unit_norm)
            [layer] = kf.read(net.state_dict()).layers
            np.testing.assert_allclose(layer.weight, kf.read(net).layers[0].weight, atol=1e-6)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), WAYS["orthogonal"]())
    with pytest.raises(kf.KeyFiltersError, match="parametrisation that names do not tell"):
        kf.read(net.state_dict())


class MaxNorm(nn.Conv2d):
    """A constraint as of EEGNet: every pass changes the stored weight."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
        return super().forward(x)


def test_a_pass_that_changes_weights_does_not_change_those_of_the_model() -> None:
    net = nn.Sequential(plain(MaxNorm), plain(), nn.Flatten(), nn.Linear(6 * 81, 2))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    bank = kf.read(net)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    used = torch.renorm(before["0.weight"], 2, 0, 0.5)
    np.testing.assert_allclose(bank.layers[0].weight, used[:, 0], rtol=1e-6)
    small = KEYS.filters[:1].repeat(6, 0) * 0.01
    kf.transfer_filters_(net[:1], kf.read({"0.weight": torch.tensor(small)[:, None]}))
    torch.testing.assert_close(net[0].weight[:, 0].double(), torch.tensor(small), rtol=1e-6, atol=0)


class Preprocessed(nn.Module):
    """What prepares images is a part of the network, whatever its network is called."""

    def __init__(self, name: str, net: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x: Tensor) -> Tensor:
        prepared: Tensor = getattr(self, self.name)((x - 128) / 60)
        return prepared


def test_the_name_of_a_child_makes_no_wrapper() -> None:
    images = 255 * torch.rand(8, 6, 9, 9)
    changed = []
    for name in ("net", "module"):
        net = nn.Sequential(plain(), nn.BatchNorm2d(6), nn.ReLU(), plain(), nn.BatchNorm2d(6))
        model = Preprocessed(name, net)
        for _ in range(3):
            model(images)
        kf.replace_filters_(model, KEYS, images=images)
        changed.append(model.eval()(images))
    torch.testing.assert_close(*changed)


def test_complex_weights_are_left_alone() -> None:
    net = nn.Sequential(plain(), nn.Conv2d(6, 6, 5, groups=6, dtype=torch.complex64))
    before = net[1].weight.detach().clone()
    bank = kf.read(net)
    assert [x.name for x in bank.layers] == ["0"] and "complex" in bank.skipped[0][1]
    report = kf.replace_filters_(net, KEYS)
    assert "complex" in report.set_index("layer")["left"]["1"]
    assert torch.equal(net[1].weight, before)


class BlurPool(nn.Module):
    """A convolution with a fixed buffer."""

    def __init__(self, stride: Any) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("filt", torch.full((6, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.filt, stride=self.stride, groups=6)


@pytest.mark.parametrize("stride", [2, (2, 2)])
@pytest.mark.parametrize("way", ["fx", "exported"])
def test_programs_tell_buffers_from_filters_and_modules_from_functions(
    way: str, stride: Any
) -> None:
    net = nn.Sequential(plain(), BlurPool(stride), plain()).eval()
    images = torch.zeros(1, 6, 19, 19)
    made = torch.fx.symbolic_trace(net) if way == "fx" else program(way, net, images)
    bank = kf.read(made)
    assert [x.name for x in bank.layers] == ["0", "2"]
    [(name, why)] = bank.skipped
    assert name.endswith("/1.filt") and "buffer" in why
    kf.initialize_filters_(made, "covariance")
    assert torch.equal(made.get_buffer("1.filt"), net[1].filt)


def test_a_kernel_that_a_program_uses_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = plain()

        def forward(self, x: Tensor) -> Tensor:
            again: Tensor = self.conv(self.conv(x))
            return again

    made = program("exported", Twice(), torch.zeros(1, 6, 9, 9))
    assert [x.name for x in kf.read(made).layers] == ["conv"]


def test_strides_that_a_graph_computes_are_named() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.rand(6, 1, 5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.kernel, groups=x.shape[1])

    bank = kf.read(torch.fx.symbolic_trace(nn.Sequential(plain(), Grouped())))
    assert [x.name for x in bank.layers] == ["0"]
    assert ["computed" in why for _, why in bank.skipped] == [True]


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit).* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_a_trace_hides_is_named_and_scripted_parts_are_read() -> None:
    net = nn.Sequential(torch.nn.utils.weight_norm(plain()), plain()).eval()
    bank = kf.read(torch.jit.trace(net, torch.zeros(1, 6, 9, 9)))
    assert [x.name for x in bank.layers] == ["1"]
    [(name, why)] = bank.skipped
    assert name.endswith("/0") and "read the module" in why
    mixed = nn.Sequential(torch.jit.script(nn.Sequential(plain())), plain(), plain())
    assert [x.name for x in kf.read(mixed).layers][-2:] == ["1", "2"]

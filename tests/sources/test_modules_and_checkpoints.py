from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import Conv2dSame
from torch import nn

import keyfilters as kf


def same_filters(a: kf.FilterBank, b: kf.FilterBank) -> None:
    assert [x.weight.shape for x in a.layers] == [x.weight.shape for x in b.layers]
    for x, y in zip(a.layers, b.layers, strict=True):
        np.testing.assert_array_equal(x.weight.view(np.uint32), y.weight.view(np.uint32))
        assert x.depth == y.depth


def test_module_tells_names_and_geometry(network: nn.Module) -> None:
    bank = kf.read(network)
    assert [(x.name, x.size, x.stride, x.dilation, x.multiplier) for x in bank.layers] == [
        ("1", (5, 5), (1, 1), (1, 1), 1),
        ("3", (3, 3), (2, 1), (1, 1), 2),
        ("4", (1, 7), (1, 1), (1, 2), 1),
        ("5", (7, 7), (1, 1), (1, 1), 1),
    ]
    assert [x.depth for x in bank.layers] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert dict(bank.skipped) == {
        "Sequential/0": "dense 3×3 convolution of 3 channels",
        "Sequential/2": "pointwise (1×1) convolution",
        "Sequential/6": "grouped 3×3 convolution (4 groups of 6)",
    }
    np.testing.assert_array_equal(
        bank.layers[0].weight,
        network[1].weight.detach().numpy()[:, 0],  # type: ignore[index]
    )


def test_reading_copies_and_alters_nothing(network: nn.Module) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    bank = kf.read(network)
    kept = bank.layers[0].weight.copy()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        network[1].weight.zero_()  # type: ignore[index,operator]
    np.testing.assert_array_equal(bank.layers[0].weight, kept)


def test_every_checkpoint_gives_the_same_filters(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    expected = kf.read(network)
    wrapped = {"epoch": 1, "state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}
    torch.save(state, tmp_path / "plain.pth")
    torch.save({**wrapped, "args": argparse.Namespace(lr=0.1)}, tmp_path / "wrapped.pt")
    save_file(state, tmp_path / "tensors.safetensors")
    for source in (
        state,
        wrapped,
        {"model": wrapped},
        *(tmp_path / n for n in ("plain.pth", "wrapped.pt", "tensors.safetensors")),
    ):
        bank = kf.read(source)
        same_filters(bank, expected)
        assert [x.name for x in bank.layers] == ["1", "3", "4", "5"]
        assert all(x.stride is None and x.multiplier is None for x in bank.layers)


def test_half_precision_is_read_exactly_and_float64_says_so() -> None:
    weight = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        stored = weight.to(dtype)
        [layer] = kf.read({"conv.weight": stored}).layers
        np.testing.assert_array_equal(layer.weight, stored[:, 0].float().numpy())
        assert ("float64" in layer.note) == (dtype == torch.float64)


def test_safetensors_order_is_natural(tmp_path: Path) -> None:
    state = {f"blocks.{i}.weight": torch.full((2, 1, 3, 3), float(i)) for i in range(12)}
    save_file(state, tmp_path / "x.safetensors")
    assert [layer.weight[0, 0, 0] for layer in kf.read(tmp_path / "x.safetensors").layers] == list(
        range(12)
    )


def test_names_may_hold_any_number_of_digits(tmp_path: Path) -> None:
    """Python refuses to read numbers of more than 4,300 digits."""
    names = ["a.²", "a.9", "a.10", "a." + "9" * 5000]
    save_file({x: torch.ones(2, 1, 3, 3) for x in names}, tmp_path / "x.safetensors")
    bank = kf.read(tmp_path / "x.safetensors")
    assert {layer.name for layer in bank.layers} == set(names[:3])
    [(name, why)] = bank.skipped
    assert name.startswith("x/a.999") and "name" in why


def test_shape_alone_is_flagged_and_more_so_for_the_first_layer() -> None:
    bank = kf.read({"stem.weight": torch.ones(8, 1, 5, 5), "dw.weight": torch.ones(8, 1, 3, 3)})
    assert "one-channel image" in bank.layers[0].note and "probably" in bank.layers[0].note
    assert "one-channel image" in bank.layers[1].note and "probably" not in bank.layers[1].note


def test_other_tensors_are_not_taken_and_other_dimensions_are_named() -> None:
    bank = kf.read(
        {
            "dw.weight": torch.ones(8, 1, 3, 3),
            "cls_token": torch.ones(1, 1, 8),
            "pos_embed": torch.ones(1, 8, 4, 4),
            "norm.weight": torch.ones(8),
            "conv1d.weight": torch.ones(8, 1, 5),
            "conv3d.weight": torch.ones(8, 1, 3, 3, 3),
            "quantised.weight": torch.ones(8, 1, 3, 3, dtype=torch.int8),
        }
    )
    assert [(x.name, x.ndim, x.size) for x in bank.layers] == [
        ("dw", 2, (3, 3)),
        ("conv1d", 1, (1, 5)),
    ]
    assert dict(bank.skipped) == {
        "state_dict/conv3d": "3-D depthwise convolution",
        "state_dict/quantised.weight": "torch.int8 weights without scales",
    }


def test_an_average_over_training_is_preferred_and_the_other_copy_named() -> None:
    raw, average = torch.zeros(4, 1, 3, 3), torch.ones(4, 1, 3, 3)
    bank = kf.read({"model": {"a.weight": raw}, "model_ema": {"a.weight": average}})
    assert bank.layers[0].weight.all()
    [(name, why)] = bank.skipped
    assert name == "state_dict/model" and "'model_ema' was read" in why
    assert "average" in bank.layers[0].note


def test_shared_parameters_count_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4))
    net[1].weight = net[0].weight
    torch.save(net.state_dict(), tmp_path / "tied.pth")
    for source in (net, net.state_dict(), tmp_path / "tied.pth"):
        bank = kf.read(source)
        assert len(bank) == 4
        assert "shares its weights with 0" in bank.skipped[0][1]


def test_nan_and_dead_filters_are_kept_as_stored_and_listed() -> None:
    weight = torch.randn(4, 1, 3, 3)
    weight[1, 0, 0, 0], weight[2] = torch.nan, 0
    bank = kf.read({"dw.weight": weight})
    assert np.isnan(bank.layers[0].weight[1, 0, 0])
    assert bank.unusable()["channel"].tolist() == [1, 2]


class Evil:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    target, weights = tmp_path / "made", {"dw.weight": torch.ones(4, 1, 3, 3)}
    torch.save({"state_dict": {"a.weight": Evil(target)}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(target), protocol=2))
    (tmp_path / "newer.pth").write_bytes(pickle.dumps(Evil(target), protocol=4))
    for name in ("evil.pth", "plain.pth", "newer.pth"):
        with pytest.raises(kf.KeyFiltersError, match="no weights"):
            kf.read(tmp_path / name)
    torch.save({"state_dict": weights, "callbacks": [Evil(target)]}, tmp_path / "both.pth")
    assert len(kf.read(tmp_path / "both.pth")) == 4
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_truncated_checkpoints(
    network: nn.Module, tmp_path: Path, suffix: str, keep: float
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), whole)
    else:
        save_file(network.state_dict(), whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(keep if isinstance(keep, int) else keep * len(data))])
    with pytest.raises(kf.KeyFiltersError, match=f"cut{suffix} is not a readable"):
        kf.read(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no weights found"),
        ([1, 2], "no weights found"),
        (3, "no weights found"),
        ({"fc.weight": torch.ones(3, 3)}, "no depthwise filters"),
    ],
)
def test_checkpoints_without_filters(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(kf.KeyFiltersError, match=message):
        kf.read(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_frozen_torchscript_keeps_its_weights_as_constants(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), tmp_path / "s.pt")
    [layer] = kf.read(tmp_path / "s.pt").layers
    weight = net[1].weight
    assert isinstance(weight, torch.Tensor)
    np.testing.assert_array_equal(layer.weight, weight.detach().numpy()[:, 0])


def changed(padding: Any) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3, groups=4)
    conv.padding = padding
    return conv


@pytest.mark.parametrize(
    ("conv", "padding"),
    [
        (nn.Conv2d(4, 4, 3, groups=4, padding="valid"), (0, 0)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=(2, 1)), (2, 1)),
        (Conv2dSame(4, 4, 3, groups=4), "same"),
        (changed(2), (2, 2)),
        (changed([2, 1]), (2, 1)),
    ],
)
def test_padding_of_modules(conv: nn.Module, padding: Any) -> None:
    [layer] = kf.read(conv).layers
    assert layer.padding == padding


def test_numbers_that_float32_cannot_hold_are_named_and_the_others_read() -> None:
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4) for _ in range(3))).double()
    with torch.no_grad():
        net[1].weight[0, 0, 0, 0] = 1e300  # type: ignore[operator]
    bank = kf.read(net)
    assert [(x.name, x.depth) for x in bank.layers] == [("0", 0.0), ("2", 1.0)]
    [(name, why)] = bank.skipped
    assert name == "Sequential/1" and "float32" in why


def test_one_dimensional_modules_are_read_as_1xk() -> None:
    net = nn.Sequential(
        nn.Conv1d(3, 8, 1),
        nn.Conv1d(8, 16, 5, stride=2, padding=4, dilation=2, groups=8),
        nn.Conv2d(16, 16, (1, 4), groups=16, padding="same"),
    )
    one, two = kf.read(net).layers
    assert one.ndim == 1 and one.size == (1, 5) and one.multiplier == 2 and one.groups == 8
    assert (one.stride, one.dilation, one.padding) == ((1, 2), (1, 2), (0, 4))
    assert two.ndim == 2 and two.size == (1, 4) and two.padding == "same"
    assert (one.depth, two.depth) == (0.0, 1.0)

from __future__ import annotations

import pytest
from torch import nn

from keyfilters.depthwise import ConvShape, depthwise_layers, kernels, why_not_depthwise


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), None),
        (nn.Conv2d(8, 24, (1, 5), groups=8), None),
        (nn.Conv2d(1, 8, 3), "3×3 convolution of a one-channel input"),
        (nn.Conv2d(8, 8, 3), "dense 3×3 convolution of 8 channels"),
        (nn.Conv2d(8, 8, 1), "pointwise (1×1) convolution"),
        (nn.Conv2d(8, 8, 3, groups=4), "grouped 3×3 convolution (4 groups of 2)"),
        (nn.Conv2d(8, 8, 1, groups=8), "a single tap"),
        (nn.Conv1d(8, 8, 3, groups=8), None),
        (nn.Conv3d(8, 8, 3, groups=8), "3-D depthwise convolution"),
        (nn.ConvTranspose2d(8, 8, 3, groups=8), "transposed depthwise convolution"),
        (nn.ConvTranspose2d(8, 4, 3), "dense 3×3 transposed convolution"),
        (nn.LazyConv2d(8, 3), "lazy convolution"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_every_kind_of_convolution(conv: nn.Module, reason: str | None) -> None:
    [kernel] = kernels(conv)
    assert kernel.depthwise if reason is None else reason in kernel.not_depthwise


def test_weights_alone_do_not_tell_the_input() -> None:
    unknown = ConvShape((3, 3), in_channels=None, out_channels=8, channels_per_group=1)
    assert why_not_depthwise(unknown) is None
    assert unknown.groups is None and unknown.multiplier is None


def test_one_dimension_is_told_as_a_row() -> None:
    [kernel] = kernels(nn.Conv1d(8, 16, 3, groups=8, stride=2, dilation=5))
    assert kernel.shape == ConvShape((1, 3), 8, 16, 1) and kernel.shape.multiplier == 2
    assert (kernel.ndim, kernel.stride, kernel.dilation) == (1, (1, 2), (1, 5))
    assert kernel.read().shape == (16, 1, 1, 3)


def test_names_are_dotted_and_a_layer_under_two_names_appears_once() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=4)
    net = nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), conv), "b": conv})
    assert [name for name, _ in depthwise_layers(net)] == ["a.1"]

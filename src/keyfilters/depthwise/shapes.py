"""The one definition of a depthwise convolution, and whether a tensor can take its filters.

A convolution is depthwise when every input channel has filters of its own, that is
``groups == in_channels > 1``; a channel multiplier (several filters an input channel) is allowed.
We read those of two dimensions with more than one tap, and those of one dimension as 1×k. A
convolution of a one-channel image has the same weight shape ``(C, 1, k_y, k_x)`` and is *not*
depthwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from keyfilters.sizes import extent

__all__ = [
    "COMPLEX",
    "NO_DATA",
    "QUANTISED",
    "ConvShape",
    "extent",
    "why_not_depthwise",
    "why_not_held",
]

NO_DATA = "it has no data (meta device); type model.to_empty(device=...) and load the weights first"
COMPLEX = "its weights are complex, which have no real filters"
QUANTISED = "its weights are quantised; write the filters of the model before quantisation"


@dataclass(frozen=True, slots=True)
class ConvShape:
    """What a format tells about a convolution, without its weights.

    Attributes:
        kernel: spatial extents in taps, ``(k_y, k_x)`` in two dimensions.
        in_channels: channels of the input; None where only the weight's shape is known.
        out_channels: channels of the output.
        channels_per_group: input channels that one filter sees.
        transposed: whether it is a transposed ("de-") convolution.
    """

    kernel: tuple[int, ...]
    in_channels: int | None
    out_channels: int
    channels_per_group: int
    transposed: bool = False

    @property
    def groups(self) -> int | None:
        """Number of groups; None where only the weight's shape is known."""
        if self.in_channels is None:
            return None
        return self.in_channels // self.channels_per_group

    @property
    def multiplier(self) -> int | None:
        """Filters per input channel of a depthwise convolution; None where unknown."""
        return None if self.in_channels is None else self.out_channels // self.in_channels


def why_not_depthwise(conv: ConvShape) -> str | None:
    """Return None for a 2-D depthwise convolution with more than one tap, otherwise the reason.

    >>> why_not_depthwise(ConvShape((7, 7), in_channels=96, out_channels=96, channels_per_group=1))
    >>> why_not_depthwise(ConvShape((3, 3), in_channels=3, out_channels=32, channels_per_group=3))
    'dense 3×3 convolution of 3 channels'
    >>> why_not_depthwise(ConvShape((3, 3, 3), 64, out_channels=64, channels_per_group=1))
    '3-D depthwise convolution'
    """
    size = extent(conv.kernel)
    kind = "transposed convolution" if conv.transposed else "convolution"
    single_tap = prod(conv.kernel) == 1
    if conv.channels_per_group > 1:
        if conv.groups is not None and conv.groups > 1:
            return f"grouped {size} {kind} ({conv.groups} groups of {conv.channels_per_group})"
        if single_tap:
            return f"pointwise ({size}) {kind}"
        return f"dense {size} {kind} of {conv.channels_per_group} channels"
    if (conv.in_channels if conv.in_channels is not None else conv.out_channels) == 1:
        return f"{size} {kind} of a one-channel input"
    dimensions = "" if len(conv.kernel) == 2 else f"{len(conv.kernel)}-D "
    if conv.transposed:
        return f"{dimensions}transposed depthwise convolution"
    if len(conv.kernel) != 2:
        return f"{dimensions}depthwise convolution"
    if single_tap:
        return "depthwise convolution of a single tap, which has no spatial shape"
    return None


def why_not_held(tensor: Tensor) -> str:
    """Return why filters cannot be written to a tensor in place; empty where they can.

    >>> why_not_held(torch.ones(1, 1, 3, 3).expand(8, 1, 3, 3))[:24]
    'its filters share memory'
    """
    if tensor.is_quantized:
        return QUANTISED
    if _overlaps(tensor):
        return (
            "its filters share memory (an expanded tensor); type "
            "conv.weight = torch.nn.Parameter(conv.weight.detach().clone()) first"
        )
    return ""


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements of a tensor are one number in memory."""
    if tensor.is_contiguous() or not tensor.numel():
        return False
    places = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + torch.arange(size) * stride
    return len(places.unique()) < tensor.numel()

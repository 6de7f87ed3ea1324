"""The kernel that a convolution really uses, seen by running it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import first_line
from keyfilters.tracing import conv_calls

__all__ = ["hands_over_its_weight", "probe"]


def probe(conv: Any, values: dict[str, Tensor]) -> Tensor:
    """Return the weight that the forward pass of a convolution hands to ``conv1d`` or ``conv2d``.

    Args:
        conv: a convolution of one or two dimensions; a copy of it runs, in evaluation mode.
        values: parameters and buffers to use in place of its own, by name.

    Raises:
        KeyFiltersError: it does not call one of them exactly once.

    >>> conv = nn.Conv2d(4, 4, 3, groups=4)
    >>> torch.equal(probe(conv, {}), conv.weight)
    True
    """
    return _probed(conv, values)[0]


def hands_over_its_weight(conv: Any) -> bool:
    """Tell whether a convolution convolves with its parameter ``weight`` as it is stored.

    Raises:
        KeyFiltersError: as `probe`.
    """
    made, twin = _probed(conv, {})
    same = made.data_ptr() == twin.weight.data_ptr() and made.shape == conv.weight.shape
    return same and torch.equal(made, conv.weight.detach())  # the pass may have changed it


def _probed(conv: Any, values: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Return what `probe` does, and the copy that ran, which shares nothing with its model."""
    own = {name: x for name, x in {**conv._parameters, **conv._buffers}.items() if x is not None}
    kind = type(conv).__name__
    try:
        twin = copy.deepcopy(conv, {id(x): x.detach() for x in own.values()}).eval()
        for name, value in (own | values).items():
            copied = value.detach().clone()
            if name in twin._parameters:
                twin._parameters[name] = nn.Parameter(copied, requires_grad=False)
            else:
                twin._buffers[name] = copied
        twin._forward_hooks.clear()
        twin._forward_pre_hooks.clear()
        like = next(x for x in own.values() if x.is_floating_point())
        sides = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        images = torch.zeros(1, conv.in_channels, *sides, dtype=like.dtype, device=like.device)
        calls = conv_calls(twin, [twin], images)
    except Exception as error:  # of any kind: this is the class's own code
        raise KeyFiltersError(
            f"its class {kind} could not be run to see its kernel "
            f"({first_line(error.__cause__ or error)})"
        ) from error
    if len(calls) != 1:
        raise KeyFiltersError(f"its class {kind} does not convolve with one kernel")
    return calls[0].weight.detach(), twin

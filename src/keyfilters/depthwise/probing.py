"""The kernel that a convolution really uses, seen by running it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import first_line
from keyfilters.tracing import conv_calls

__all__ = ["probe"]


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
    own = {**conv._parameters, **conv._buffers}
    kind = type(conv).__name__
    try:
        twin = copy.deepcopy(conv, {id(x): x for x in own.values() if x is not None}).eval()
        for name, value in values.items():
            if name in twin._parameters:
                twin._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
            else:
                twin._buffers[name] = value.detach()
        twin._forward_hooks.clear()
        twin._forward_pre_hooks.clear()
        like = next(x for x in own.values() if x is not None and x.is_floating_point())
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
    return calls[0].weight.detach()

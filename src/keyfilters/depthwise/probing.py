"""What a convolution really convolves with, seen by running it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import first_line, quiet

__all__ = ["probe"]


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is conv2d:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def probe(conv: Any, values: dict[str, Tensor]) -> Tensor:
    """Return the weight that the forward pass of a convolution hands to ``conv2d``.

    Args:
        conv: a convolution of two dimensions; a copy of it runs, in evaluation mode.
        values: parameters and buffers to use in place of its own, by name.

    Raises:
        KeyFiltersError: it calls ``conv2d`` not exactly once.

    >>> conv = nn.Conv2d(4, 4, 3, groups=4)
    >>> torch.equal(probe(conv, {}), conv.weight)
    True
    """
    own = {**conv._parameters, **conv._buffers}
    shared = {id(x): x for x in own.values() if x is not None}
    kind = type(conv).__name__
    try:
        twin = copy.deepcopy(conv, dict(shared)).eval()
        for name, value in values.items():
            if name in twin._parameters:
                twin._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
            else:
                twin._buffers[name] = value.detach()
        for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
            hooks.clear()
        like = next(x for x in own.values() if x is not None and x.is_floating_point())
        sides = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        images = torch.zeros(1, conv.in_channels, *sides, dtype=like.dtype, device=like.device)
        with quiet(), _Watch() as watch:
            twin(images)
    except Exception as error:  # of any kind: this is the class's own code
        raise KeyFiltersError(
            f"its class {kind} could not be run to see its kernel ({first_line(error)})"
        ) from error
    if len(watch.weights) != 1:
        raise KeyFiltersError(f"its class {kind} does not convolve with one kernel")
    return watch.weights[0].detach()

"""Reading an `nn.Module`: exact geometry, exact names."""

from __future__ import annotations

from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.depthwise import ConvShape, convolutions
from keyfilters.sources.collect import Collector
from keyfilters.sources.statedicts import to_array

__all__ = ["read_module"]


def read_module(module: nn.Module, model: str | None = None) -> FilterBank:
    """Read the depthwise filters of a module, in order of registration.

    Args:
        module: any module; its weights are copied and never altered.
        model: name of the model in the bank's tables; default: the class name.

    >>> bank = read_module(nn.Sequential(nn.Conv2d(8, 8, 5, groups=8)), "net")
    >>> bank.layers
    [Layer(net/0: 8 filters of 5×5)]
    """
    collector = Collector(model or type(module).__name__)
    for name, conv, reason in convolutions(module):
        if reason is not None:
            collector.skip(name, reason)
            continue
        weight = conv.weight
        collector.offer(
            name,
            ConvShape(tuple(conv.kernel_size), conv.in_channels, conv.out_channels, 1),
            lambda weight=weight: to_array(weight),  # type: ignore[misc]
            stride=(conv.stride[0], conv.stride[1]),
            dilation=(conv.dilation[0], conv.dilation[1]),
            identity=(weight.data_ptr(), weight.shape, weight.stride()),
        )
    return collector.bank()

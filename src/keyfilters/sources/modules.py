"""Reading an `nn.Module`: exact geometry, exact names, the weights that are really used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyfilters.bank import FilterBank
from keyfilters.depthwise import Kernel, kernels, unwrapped
from keyfilters.depthwise import fused as fuse
from keyfilters.sources.collect import Collector
from keyfilters.sources.statedicts import to_array, why_too_large

__all__ = ["is_module", "read_module"]


def is_module(source: Any) -> bool:
    """Whether something is a module or an exported program."""
    return isinstance(source, torch.export.ExportedProgram) or hasattr(source, "named_modules")


def read_module(
    module: nn.Module | torch.export.ExportedProgram,
    model: str | None = None,
    *,
    fused: bool = False,
) -> FilterBank:
    """Read the kernels with which the depthwise convolutions of a module convolve.

    The order is that of the forward pass where a copy can be run on an example, otherwise that of
    registration, as a note then says.

    Args:
        module: any module; its weights are copied and never altered.
        model: name of the model in the bank's tables; default: the class name.
        fused: whether to read the kernels that re-parameterised blocks (MobileOne, RepVGG, …) fuse
            into, with the batch normalisations behind them, in place of their branches.

    >>> bank = read_module(nn.Sequential(nn.Conv2d(8, 8, 5, groups=8)), "net")
    >>> bank.layers
    [Layer(net/0: 8 filters of 5×5)]
    """
    if isinstance(module, torch.export.ExportedProgram):
        module = module.module()
    collector = Collector(model or type(unwrapped(module)).__name__)
    depths: list[float] = []
    for kernel in kernels(fuse(module) if fused else module):
        if kernel.not_depthwise or kernel.unreadable:
            collector.skip(kernel.name, kernel.not_depthwise or kernel.unreadable)
        elif kernel.owner:
            reason = f"shares its weights with {kernel.owner}, counted once"
            collector.skip(kernel.name, reason)
        elif _offer(collector, kernel, fused):
            depths.append(kernel.depth)
    bank = collector.bank()
    layers = [replace(x, depth=depth) for x, depth in zip(bank.layers, depths, strict=True)]
    return FilterBank(layers, bank.skipped)


def _padding(conv: Any) -> tuple[int, ...] | str | None:
    value = getattr(conv, "padding", None)
    if "Same" in type(conv).__name__ or value == "same":
        return "same"
    if value == "valid":
        return (0,) * len(conv.kernel_size)
    if isinstance(value, int):
        return (value,) * len(conv.kernel_size)
    return tuple(value) if isinstance(value, (tuple, list)) else None


def _offer(collector: Collector, kernel: Kernel, fused: bool) -> bool:
    assert kernel.shape is not None and kernel.form is not None
    weight: Tensor = kernel.read()
    if reason := why_too_large(weight):
        collector.skip(kernel.name, reason)
        return False
    how = kernel.form.how
    notes = [kernel.note, f"its kernel is {how}: what is convolved with, not stored" if how else ""]
    notes += ["fused: branches and batch normalisations are part of it"] if fused else []
    filters: np.ndarray[Any, Any] = to_array(weight)
    shape = kernel.shape  # that of one dimension is told as it was
    collector.offer(
        kernel.name,
        replace(shape, kernel=shape.kernel[1:]) if kernel.ndim == 1 else shape,
        lambda: filters,
        stride=kernel.stride,
        dilation=kernel.dilation,
        padding=_padding(kernel.module) if hasattr(kernel.module, "kernel_size") else None,
        note="; ".join(filter(None, notes)),
    )
    return True

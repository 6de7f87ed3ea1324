"""Which layer a parameter belongs to, and by how much that scales its learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["layer_numbers", "layer_scales"]


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Return the number of the layer of every parameter, from 0 at the input to the head.

    Layers are those of timm's ``group_matcher``, in which a downsampling layer goes with the block
    behind it; modules without one are cut into layers of 12 parameters. ConvNeXt's stem goes with
    the first block, as its authors have it; in timm it is a layer of its own.

    >>> import timm
    >>> numbers = layer_numbers(timm.create_model("convnextv2_atto"))  # 2 + 2 + 6 + 2 blocks
    >>> names = ("stem.0.bias", "stages.0.blocks.0.norm.bias", "stages.1.downsample.1.bias")
    >>> [numbers[name] for name in names], numbers["head.fc.bias"]
    ([0, 0, 2], 12)
    """
    from timm.models import group_parameters
    from timm.models.convnext import ConvNeXt
    from timm.optim import auto_group_layers

    matching: Any = getattr(model, "group_matcher", None)
    if matching is None:
        return dict(auto_group_layers(model))
    numbers: dict[str, int] = group_parameters(model, matching(coarse=False), reverse=True)
    if isinstance(model, ConvNeXt):
        numbers = {name: max(number - 1, 0) for name, number in numbers.items()}
    return numbers


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of every parameter's learning rate, ``decay ** (last layer - its layer)``.

    Frozen parameters count as layers too, so that freezing changes no other parameter's factor.

    Args:
        model: any module; parametrised weights belong to the layer of their module.
        decay: from one layer to the one before; 1 scales none.

    >>> import timm
    >>> scales = layer_scales(timm.create_model("convnextv2_atto"), 0.9)
    >>> round(scales["stem.0.bias"], 4), scales["head.fc.bias"]
    (0.2824, 1.0)
    """
    numbers = layer_numbers(model)
    last = max(numbers.values(), default=0)
    return {name: decay ** (last - number) for name, number in numbers.items()}

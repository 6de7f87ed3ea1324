"""Whether a stored tensor can take filters in place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NO_DATA", "QUANTISED", "why_not_held"]

NO_DATA = "it has no data (meta device); type model.to_empty(device=...) and load the weights first"
QUANTISED = "its weights are quantised; write the filters of the model before quantisation"


def why_not_held(tensor: Tensor) -> str:
    """Return why a tensor cannot take filters in place; empty where it can.

    >>> why_not_held(torch.ones(1, 1, 3, 3).expand(8, 1, 3, 3))[:24]
    'its filters share memory'
    """
    if tensor.is_meta:
        return NO_DATA
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

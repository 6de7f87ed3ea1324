"""Depthwise weights made of keys, ``a · x + b``, to be registered as parametrisations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields.scaled_keys import ScaledKeys

__all__ = ["FixedKeys", "KeyWeight"]


class FixedKeys(nn.Module):
    """Keys ``(K, k_y, k_x)`` as they are: channel c has the filter ``x_index[c]``."""

    def __init__(self, filters: ArrayLike, index: ArrayLike) -> None:
        super().__init__()
        # Of four dimensions, so that `.to(memory_format=...)` finds it; see `KeyWeight`.
        self.filters = nn.Buffer(torch.tensor(np.asarray(filters))[:, None])
        self.index = nn.Buffer(torch.tensor(np.asarray(index)))

    def forward(self) -> Tensor:
        """Return the filters of all channels, ``(C, k_y, k_x)``."""
        return self.filters[:, 0].index_select(0, self.index)


class KeyWeight(nn.Module):
    """The weight of a depthwise layer, ``w_c = a_c x_index[c] + b_c`` (babaiee2025quest).

    With `unit_norm` the whole kernel is divided by its ℓ2 norm, ``√(a² + N b²)`` of N taps
    (lindeberg2026modelling). Computed in float32 or wider, whatever autocast says, and rounded to
    the dtype of a and b. Registered as a parametrisation it keeps nothing of the former weight.

    Args:
        keys: draw ``(C, k_y, k_x)``, centred and of unit norm.
        amplitude: ``(C,)`` a, in units of the weight.
        bias: ``(C,)`` b, a tap.
        unit_norm: whether to divide each kernel by its norm.
        ndim: dimensions of the convolution; that of 1 has a weight ``(C, 1, k)``, of 1×k keys.

    >>> weight = KeyWeight(FixedKeys(np.eye(3)[None], [0]), torch.tensor([2.0]), torch.zeros(1))
    >>> weight()[0, 0].tolist()
    [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
    """

    draws_keys = True  # how `keyfilters.depthwise` knows it

    def __init__(
        self,
        keys: FixedKeys | ScaledKeys,
        amplitude: Tensor,
        bias: Tensor,
        unit_norm: bool = False,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.keys, self.ndim = keys, ndim
        self.unit_norm = unit_norm
        if unit_norm:  # so that a state dict tells the kernel
            self.unit = nn.Buffer(torch.ones(()))
        self.registered = False
        self.amplitude, self.bias = (
            x if isinstance(x, nn.Parameter) else nn.Buffer(x) for x in (amplitude, bias)
        )

    def forward(self) -> Tensor:
        """Return the weight, ``(C, 1, k_y, k_x)``."""
        device = self.amplitude.device.type
        # Meta tensors have no autocast; torch 2.6 cannot compile is_autocast_available.
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._draw()
        return self._draw()

    def _draw(self) -> Tensor:
        drawn: Tensor = self.keys()
        wide = torch.promote_types(drawn.dtype, torch.float32)
        a, b = (value.to(wide)[:, None, None] for value in (self.amplitude, self.bias))
        if self.unit_norm:
            squared = a.square() + drawn[0].numel() * b.square()  # x is centred and of unit norm
            scale = squared.clamp(min=torch.finfo(wide).tiny).rsqrt()
            a, b = a * scale, b * scale
        kernel = torch.addcmul(b, a, drawn.to(wide)).to(self.amplitude.dtype)
        if self.ndim == 1:
            return kernel  # (C, k_y, k_x) with one row is (C, 1, k)
        format_of = self.keys.filters if isinstance(self.keys, FixedKeys) else self.keys.impulse
        if format_of.stride(1) == 1:  # channels last, which a convolution takes from the strides
            return kernel[..., None].permute(0, 3, 1, 2)
        return kernel[:, None]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.unit_norm:  # not in files of the first version
            state_dict.setdefault(f"{prefix}unit", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Keep nothing of the former weight; refuse a later one, which no key may draw."""
        if self.registered:
            raise KeyFiltersError("the weight is drawn from keys; type kf.bake_filters_(model)")
        self.registered = True
        return ()

"""Depthwise weights made of keys, ``a · x + b``, to be registered as parametrisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields.operators import Operator, operator
from keyfilters.scalespace import difference

__all__ = ["FixedKeys", "KeyWeight", "ScaledKeys"]

LARGEST_SIGMA = 5.0  # taps: on a small window a wider form is constant up to rounding


class FixedKeys(nn.Module):
    """Keys ``(K, k_y, k_x)`` as they are: channel c has the filter ``x_index[c]``."""

    filters: Tensor
    index: Tensor

    def __init__(self, filters: ArrayLike, index: ArrayLike) -> None:
        super().__init__()
        # Of four dimensions, so that `.to(memory_format=...)` finds it; see `KeyWeight`.
        self.register_buffer("filters", torch.tensor(np.asarray(filters))[:, None])
        self.register_buffer("index", torch.tensor(np.asarray(index)))

    def forward(self) -> Tensor:
        """Return the filters of all channels, ``(C, k_y, k_x)``."""
        return self.filters[:, 0].index_select(0, self.index)


class ScaledKeys(nn.Module):
    """Idealised keys whose scales are learned, one σx and σy a channel, in taps.

    A form is ``Σ_i D_i T(x; σx²) D'_i T(y; σy²)``, in one key plus δ₀, of the discrete Gaussian
    ``T(n; s) = (1/M) Σ_m exp(s (cos θ_m − 1)) cos(n θ_m)`` and differences D, brought to mean 0 and
    unit norm; ``σ = softplus(raw)``, at most 5 taps (lindeberg2026modelling, without the limit).
    Keys of one scale (Laplacian, sharpening) have σx only; α stays fixed. `Operator.render` draws
    the same, one operator at a time.

    Args:
        models: one row a key: operator, sigma_x and sigma_y in taps, alpha.
        filters: ``(K, k, k)`` what the models draw, centred and of unit norm.
        index: ``(C,)`` the key of every channel, whose scales it starts from.

    Raises:
        KeyFiltersError: the models do not draw the filters.
    """

    raw_sigma: nn.Parameter
    index: Tensor
    axes: Tensor
    impulse: Tensor
    one_scale: Tensor
    shared: Tensor
    decay: Tensor
    table: Tensor
    factors: Tensor
    offset: Tensor
    level: Tensor

    def __init__(self, models: pd.DataFrame, filters: NDArray[Any], index: ArrayLike) -> None:
        super().__init__()
        self.size = filters.shape[-1]
        forms = [operator(name) for name in models["operator"]]
        impulse = torch.zeros(len(models), 1, self.size, self.size, dtype=torch.float64)
        impulse[:, 0, self.size // 2, self.size // 2] = torch.tensor([f.sharpens for f in forms])
        self.register_buffer("axes", _axes(forms, models["alpha"], self.size))
        self.register_buffer("impulse", impulse)
        self.register_buffer("one_scale", torch.tensor([form.isotropic for form in forms]))
        sigmas = torch.tensor(models[["sigma_x", "sigma_y"]].to_numpy(dtype=np.float64))
        # The inverse of softplus; the floor keeps it finite at sigma = 0, where T is the impulse.
        raw = sigmas.clamp(1e-4, LARGEST_SIGMA).expm1().log()
        for chosen in (torch.arange(len(models)), torch.tensor(np.asarray(index))):
            self.register_buffer("index", chosen)
            # Flat, as weight decay is often for tensors of two dimensions and more.
            self.raw_sigma = nn.Parameter(raw[chosen].T.flatten())
            self._tabulate()
            if not np.allclose(self().detach(), filters[chosen], atol=1e-6):
                raise KeyFiltersError("the models of this key set do not draw its filters")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaledKeys:
        super()._apply(fn, recurse)
        self._tabulate()  # anew: rounded to half precision, differences of it would be noise
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._tabulate()

    @torch.no_grad()
    def _tabulate(self) -> None:
        """Compute what is the same in every step, from the nodes θ_m to each channel's D."""
        # After `to_empty` the index is anything until a state dict is loaded.
        index = self.index.clamp(0, len(self.one_scale) - 1)
        radius = self.size // 2
        half = 20 + radius  # nodes on (0, π]: 1e-15 off at LARGEST_SIGMA
        theta = torch.arange(half + 1, dtype=torch.float64) * (math.pi / half)
        decay = (torch.cos(theta) - 1)[:, None]
        cosines = torch.cos(theta[:, None] * torch.arange(radius + 1)) / half
        cosines[[0, -1]] /= 2
        constants = {
            "decay": decay,
            "table": torch.cat([cosines, decay * cosines], dim=1).T.contiguous(),  # T and dT/ds
            "factors": self.axes[:, index].unflatten(0, (radius + 1, -1, 2)),
            "offset": self.impulse[index, 0],
            "level": torch.full((self.size, self.size), 1 / self.size, dtype=torch.float64),
        }
        dtype = torch.promote_types(self.raw_sigma.dtype, torch.float32)
        for name, value in constants.items():
            self.register_buffer(name, value.to(self.raw_sigma.device, dtype), persistent=False)
        self.register_buffer("shared", self.one_scale[index], persistent=False)

    def sigma(self) -> Tensor:
        """Return σx and σy of all channels, ``(2, C)`` in taps."""
        return _sigma(self._raw())

    def _raw(self) -> Tensor:
        raw = self.raw_sigma.view(2, -1).to(self.decay.dtype)
        return torch.where(self.shared, raw[0], raw)

    def forward(self) -> Tensor:
        """Return the forms of all channels, ``(C, k, k)``, centred and of unit norm."""
        drawn, *_ = _Drawing.apply(self._raw(), self.factors, self.offset, self.decay, self.table)
        # Mean 0, and mean square 1 times `level`: unit norm in one operation.
        return functional.layer_norm(drawn, self.level.shape, self.level, eps=0.0)


def _sigma(raw: Tensor) -> Tensor:
    return functional.softplus(raw).clamp(max=LARGEST_SIGMA)


class _Drawing(torch.autograd.Function):
    """Sums of separable terms, their slopes drawn on the way and channels last: 4 times faster."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        raw: Tensor, factors: Tensor, offset: Tensor, decay: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sigma = _sigma(raw)
        nodes = torch.exp(decay * sigma.square().flatten())
        kernels = (table @ nodes).view(2, len(factors), 1, *raw.shape)  # T and dT/ds
        along = (factors * kernels).sum(1).unflatten(1, (-1, offset.shape[-1]))
        x, y = along[None, :, :, None, :, 0], along[:, None, :, :, None, 1]
        drawn = (y * x).sum(2).flatten(0, 1)  # the form, its slopes in σx² and σy², and a fourth
        return offset + drawn[0].permute(2, 0, 1), sigma, drawn[1:3].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, sigma, slopes = output
        ctx.mark_non_differentiable(sigma, slopes)
        ctx.save_for_backward(inputs[0], sigma, slopes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        raw, sigma, slopes = ctx.saved_tensors
        slope = (slopes * grad.permute(1, 2, 0).contiguous()).sum((1, 2))
        chain = 2 * sigma * raw.sigmoid() * (sigma < LARGEST_SIGMA)  # ds/dσ dσ/d raw
        return slope * chain, None, None, None, None


def _axes(forms: Sequence[Operator], alphas: Sequence[float], size: int) -> Tensor:
    """Return matrices that make both factors of every term from T(n), n = 0 .. radius, x first.

    In all ``((k // 2 + 1) · terms · k · 2, K)`` float64, row 0 on top.
    """
    radius, count = size // 2, max(len(form.terms) for form in forms)
    axes = torch.zeros(radius + 1, count, size, 2, len(forms), dtype=torch.float64)
    even = functional.one_hot((torch.arange(size) - radius).abs(), radius + 1).to(axes).T
    first = torch.cat([even[:, :1], even, even[:, -1:]], dim=1)  # borders as `Operator.render`
    second = functional.pad(even, (1, 1))
    for key, (form, alpha) in enumerate(zip(forms, alphas, strict=True)):
        for term, names in enumerate(form.terms):
            x, y = (difference(second if n == "dd" else first, n) for n in names)
            axes[:, term, :, 0, key] = -alpha * x if form.sharpens else x
            axes[:, term, :, 1, key] = y.flip(1)
    return axes.flatten(0, 3)


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

    amplitude: Tensor
    bias: Tensor
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
            self.register_buffer("unit", torch.ones(()))
        self.registered = False
        values = (amplitude, bias)
        self.amplitude, self.bias = (
            x if isinstance(x, nn.Parameter) else nn.Buffer(x) for x in values
        )

    def forward(self) -> Tensor:
        """Return the weight, ``(C, 1, k_y, k_x)``."""
        device = self.amplitude.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._draw()
        return self._draw()

    def _draw(self) -> Tensor:
        drawn = self.keys()
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

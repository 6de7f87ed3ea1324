"""Idealised keys drawn at scales that are learned, as a module of torch."""

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

__all__ = ["ScaledKeys"]

LARGEST_SIGMA = 5.0  # taps: on a small window a wider form is constant up to rounding


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

    def __init__(self, models: pd.DataFrame, filters: NDArray[Any], index: ArrayLike) -> None:
        super().__init__()
        self.size = filters.shape[-1]
        forms = [operator(name) for name in models["operator"]]
        impulse = torch.zeros(len(models), 1, self.size, self.size, dtype=torch.float64)
        impulse[:, 0, self.size // 2, self.size // 2] = torch.tensor([f.sharpens for f in forms])
        self.axes = nn.Buffer(_axes(forms, models["alpha"], self.size))
        self.impulse = nn.Buffer(impulse)
        self.one_scale = nn.Buffer(torch.tensor([form.isotropic for form in forms]))
        sigmas = torch.tensor(models[["sigma_x", "sigma_y"]].to_numpy(dtype=np.float64))
        # The inverse of softplus; the floor keeps it finite at sigma = 0, where T is the impulse.
        raw = sigmas.clamp(1e-4, LARGEST_SIGMA).expm1().log()
        for chosen in (torch.arange(len(models)), torch.tensor(np.asarray(index))):
            self.index = nn.Buffer(chosen)
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
        dtype = torch.promote_types(self.raw_sigma.dtype, torch.float32)

        def constant(value: Tensor) -> nn.Buffer:
            return nn.Buffer(value.to(self.raw_sigma.device, dtype), persistent=False)

        self.decay = constant(decay)
        self.table = constant(torch.cat([cosines, decay * cosines], dim=1).T.contiguous())  # dT/ds
        self.factors = constant(self.axes[:, index].unflatten(0, (radius + 1, -1, 2)))
        self.offset = constant(self.impulse[index, 0])
        self.level = constant(
            torch.full((self.size, self.size), 1 / self.size, dtype=torch.float64)
        )
        self.shared = nn.Buffer(self.one_scale[index], persistent=False)

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

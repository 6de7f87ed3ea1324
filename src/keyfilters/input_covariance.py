"""Choosing key, a and b by what comes out of a layer, not by the filter alone.

A filter w sees patches p. Its output is ``y = ⟨w, p⟩``; that of ``ŵ = a x + b 1`` on the patches p̂
of the network as it is now is ``ŷ = ⟨ŵ, p̂⟩``. Up to a constant, which a bias or a batch
normalisation takes up, the mean square of y − ŷ is ``ŵᵀ H ŵ − 2 hᵀ ŵ + var y`` with
``H = cov(p̂, p̂)`` and ``h = cov(p̂, y)``: for every key two equations give a and b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import refuse_non_finite
from keyfilters.tracing import ConvCall, conv_calls

__all__ = ["Settings", "Statistics", "choose", "gather", "original_outputs", "output_shares"]

PLACES = 64  # output positions an image
Outputs = Sequence[Sequence[Tensor]]  # for every batch, for every call in it (C, samples)


@dataclass(frozen=True, eq=False)
class Settings:
    """Images, and how they are used.

    Attributes:
        images: ``(n, channels, height, width)`` as the model takes them, or ``(n, channels,
            length)`` where it is of one dimension.
        ridge: see `choose`.
        batch_size: images at a time.
        seed: chooses the positions in the outputs.
        places: positions an image, at most.
    """

    images: Tensor
    ridge: float = 0.1
    batch_size: int = 32
    seed: int = 0
    places: int = PLACES

    def __post_init__(self) -> None:
        if self.images.ndim not in (3, 4) or not len(self.images):
            raise KeyFiltersError(
                "expected images of shape (n, channels, height, width), or signals of shape "
                "(n, channels, length), got "
                f"{tuple(self.images.shape)}"
            )
        refuse_non_finite(self.images)
        if self.ridge < 0:
            raise KeyFiltersError(f"ridge must be at least 0, got {self.ridge}")

    def generator(self, batch: int) -> torch.Generator:
        """Return the generator that chooses the positions of a batch."""
        return torch.Generator().manual_seed((1_000_003 * self.seed + batch) % 2**63)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second-order statistics of a layer's inputs, per channel, in float64.

    `covariance` ``(C, taps, taps)`` and `mean` ``(C, taps)`` of the patches in the network as it is
    now, their covariance with the original output `cross` ``(C, taps)``, and mean and variance of
    that output, without bias, ``(C,)``.
    """

    covariance: Tensor
    cross: Tensor
    mean: Tensor
    output_mean: Tensor
    output_variance: Tensor

    def about_zero(self) -> Statistics:
        """Return the same about 0, for outputs whose mean nothing can correct."""
        none = torch.zeros_like(self.mean)
        return Statistics(
            self.covariance + self.mean[:, :, None] * self.mean[:, None],
            self.cross + self.mean * self.output_mean[:, None],
            none,
            torch.zeros_like(self.output_mean),
            self.output_variance + self.output_mean**2,
        )

    def error(self, filters: Tensor) -> Tensor:
        """Mean square of what changes in the output, a constant aside: ``(C, taps) -> (C,)``."""
        power = torch.einsum("ct,cts,cs->c", filters, self.covariance, filters)
        return power - 2 * (self.cross * filters).sum(1) + self.output_variance


def patches(call: ConvCall, count: int, generator: torch.Generator) -> Tensor:
    """Return what the filters of a depthwise call see, ``(C, taps, B * positions)``.

    The positions of the output, at most `count`, are random, the same in all images. With a channel
    multiplier every input channel is repeated.
    """
    flat = call.weight.ndim == 3  # of one dimension, which is 1×k
    (s_y, s_x), (d_y, d_x) = _pair(call.stride), _pair(call.dilation)
    k_y, k_x = (1, *call.weight.shape[2:])[-2:]
    images, padding = call.input[:, :, None] if flat else call.input, call.padding
    s_y, d_y = (1, 1) if flat else (s_y, d_y)
    if padding == "same":
        p_y, p_x = d_y * (k_y - 1), d_x * (k_x - 1)
        images = pad(images, (p_x // 2, p_x - p_x // 2, p_y // 2, p_y - p_y // 2))
    elif padding not in ("valid", 0):
        p_y, p_x = (0, _pair(padding)[1]) if flat else _pair(padding)
        images = pad(images, (p_x, p_x, p_y, p_y))
    height = (images.shape[2] - d_y * (k_y - 1) - 1) // s_y + 1
    width = (images.shape[3] - d_x * (k_x - 1) - 1) // s_x + 1
    places = torch.randperm(height * width, generator=generator)[:count].to(images.device)
    y, x = places // width * s_y, places % width * s_x
    taps = [images[:, :, y + i * d_y, x + j * d_x] for i in range(k_y) for j in range(k_x)]
    seen = torch.stack(taps).permute(2, 0, 1, 3).flatten(2)
    return seen.repeat_interleave(len(call.weight) // len(seen), 0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def original_outputs(
    original: nn.Module, convs: Mapping[str, nn.Module], settings: Settings
) -> dict[str, list[list[Tensor]]]:
    """Return what the filters of a network give at some positions, biases aside.

    Returns:
        By name, for every batch, for every call in it ``(C, samples)``; a layer that takes no part
        is missing.
    """
    names = {conv: name for name, conv in convs.items()}
    found: dict[str, list[list[Tensor]]] = {}
    batches = settings.images.split(settings.batch_size)
    for number, batch in enumerate(batches):
        for call in conv_calls(original, names, batch):
            seen = patches(call, settings.places, settings.generator(number))
            output = torch.bmm(call.weight.detach().flatten(1)[:, None], seen)[:, 0]
            found.setdefault(names[call.module], [[] for _ in batches])[number].append(output)
    return found


def gather(model: nn.Module, conv: nn.Module, outputs: Outputs, settings: Settings) -> Statistics:
    """Run a network up to the last call of one layer and gather what enters it, in all calls.

    Args:
        model: the network as it is now.
        conv: the layer's convolution.
        outputs: of `original_outputs`, with the same settings.
        settings: images, and how many positions in each.
    """
    sums: list[Tensor] = []
    for number, batch in enumerate(settings.images.split(settings.batch_size)):
        calls = conv_calls(model, [conv], batch, {conv: len(outputs[number])})
        if len(calls) != len(outputs[number]):
            raise KeyFiltersError("a layer is called more or less often than before the surgery")
        for call, old in zip(calls, outputs[number], strict=True):
            seen = patches(call, settings.places, settings.generator(number)).double()
            parts = [
                torch.bmm(seen, seen.transpose(1, 2)),
                torch.bmm(seen, old[:, :, None].double())[:, :, 0],
                seen.sum(2),
            ]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    every = torch.cat([call for batch in outputs for call in batch], dim=1).double()
    pp, py, p = (total / every.shape[1] for total in sums)
    variance, mean = torch.var_mean(every, 1, correction=0)
    return Statistics(pp - p[:, :, None] * p[:, None], py - p * mean[:, None], p, mean, variance)


def choose(
    filters: NDArray[np.float64],
    shapes: NDArray[np.float64],
    statistics: Statistics,
    ridge: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Choose for every filter the shape, a and b that change the layer's output least.

    Args:
        filters: ``(C, k_y, k_x)``.
        shapes: ``(1, K, k_y, k_x)`` for all filters or ``(C, K, k_y, k_x)`` for each, centred, of
            unit norm.
        statistics: of the layer's inputs.
        ridge: weight of the filter's own squared error beside that of the output, in units of the
            mean variance of a tap.

    Returns:
        index, a and b, each ``(C,)``.
    """
    a, b, gain, _ = _solve(filters, shapes, statistics, ridge)
    index = gain.argmax(1, keepdim=True)
    chosen = (index, a.gather(1, index), b.gather(1, index))
    i, a_i, b_i = (x[:, 0].cpu().numpy() for x in chosen)
    return i, a_i, b_i


def output_shares(
    filters: NDArray[np.float64],
    shapes: NDArray[np.float64],
    statistics: Statistics,
    ridge: float,
) -> NDArray[np.float64]:
    """Return the share of each filter's output variance that the best a · x + b of a shape keeps.

    Args: as of `choose`; the ridge counts as white noise in the inputs.

    Returns:
        ``(C, K)`` in [0, 1].
    """
    _, _, gain, total = _solve(filters, shapes, statistics, ridge)
    share = gain / torch.where(total > 0, total, torch.ones_like(total))
    return share.clamp(0, 1).cpu().numpy()


def _solve(
    filters: NDArray[np.float64],
    shapes: NDArray[np.float64],
    statistics: Statistics,
    ridge: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best a and b of every shape, what they take off the error, all ``(C, K)``; error at 0."""
    like = statistics.covariance
    w = torch.as_tensor(filters).to(like).flatten(1)
    x = torch.tensor(shapes).to(like).flatten(2)
    power = like.diagonal(dim1=1, dim2=2).mean(1)
    # A channel that never changes leaves the filter's own error to decide.
    scale = torch.where(power > 0, ridge * power, torch.ones_like(power))[:, None]
    moved_x, moved_1 = like @ x.transpose(1, 2), like.sum(2)  # (C, taps, K), (C, taps)
    # Two normal equations a shape. ⟨x, 1⟩ = 0, so the ridge adds nothing off the diagonal.
    xx = (x.transpose(1, 2) * moved_x).sum(1) + scale
    x1 = moved_x.sum(1)
    ones = moved_1.sum(1, keepdim=True) + scale * w.shape[1]
    target = statistics.cross + scale * w
    right_x = (x * target[:, None]).sum(2)
    right_1 = target.sum(1, keepdim=True)
    determinant = xx * ones - x1**2
    possible = determinant > 1e-12 * xx * ones
    determinant = torch.where(possible, determinant, torch.ones_like(determinant))
    a = torch.where(possible, (ones * right_x - x1 * right_1) / determinant, 0.0)
    b = torch.where(possible, (xx * right_1 - x1 * right_x) / determinant, 0.0)
    total = statistics.output_variance[:, None] + scale * (w**2).sum(1, keepdim=True)
    return a, b, a * right_x + b * right_1, total

"""Choosing key, a and b by what comes out of a layer, not by the filter alone.

A filter w sees patches p. Its output is ``y = ⟨w, p⟩``; that of ``ŵ = a x + b 1`` on the patches p̂
of the network as it is now is ``ŷ = ⟨ŵ, p̂⟩``. Up to a constant, which a bias or a batch
normalisation takes up, the mean square of y − ŷ is ``ŵᵀ H ŵ − 2 hᵀ ŵ + var y`` with
``H = cov(p̂, p̂)`` and ``h = cov(p̂, y)``: for every key two equations give a and b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import refuse_non_finite
from keyfilters.surgery.traced import calls_of

__all__ = ["Settings", "Statistics", "choose", "gather", "original_outputs", "output_shares"]

PLACES = 64  # output positions an image


@dataclass(frozen=True, eq=False)
class Settings:
    """Images, and how they are used.

    Attributes:
        images: ``(n, channels, height, width)`` as the model takes them.
        ridge: see `choose`.
        batch_size: images at a time.
        seed: of the choice of places in the outputs.
        places: how many of them an image, at most.
    """

    images: Tensor
    ridge: float = 0.1
    batch_size: int = 32
    seed: int = 0
    places: int = PLACES

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images):
            raise KeyFiltersError(
                "expected images of shape (n, channels, height, width), got "
                f"{tuple(self.images.shape)}"
            )
        refuse_non_finite(self.images)
        if self.ridge < 0:
            raise KeyFiltersError(f"ridge must be at least 0, got {self.ridge}")

    def generator(self, batch: int) -> torch.Generator:
        """Return what picks the places of one batch, the same whenever it is asked."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + batch)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second-order statistics of a layer's inputs, per channel, in float64.

    Attributes:
        covariance: ``(C, taps, taps)`` of the patches in the network as it is now.
        cross: ``(C, taps)`` covariance of those patches with the original output.
        mean: ``(C, taps)`` of the patches.
        output_mean: ``(C,)`` of the original output, without bias.
        output_variance: ``(C,)``.
    """

    covariance: Tensor
    cross: Tensor
    mean: Tensor
    output_mean: Tensor
    output_variance: Tensor

    def about_zero(self) -> Statistics:
        """The same without means taken off, for outputs whose mean nothing can correct."""
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


def original_outputs(
    original: nn.Module, convs: Mapping[str, nn.Module], settings: Settings
) -> dict[str, list[list[Tensor]]]:
    """Return what the filters of a network give at some places, biases aside.

    Args:
        original: the network before surgery.
        convs: some of its convolutions, by name.
        settings: images, and how many places in each.

    Returns:
        By name, for every batch, for every call in it ``(C, samples)``; a layer that takes no part
        is missing.
    """
    found: dict[str, list[list[Tensor]]] = {}
    batches = settings.images.split(settings.batch_size)
    for number, batch in enumerate(batches):
        for name, call in calls_of(original, convs, batch):
            weight = call.weight
            patches = call.patches(settings.places, settings.generator(number))
            each = len(weight) // len(patches)  # channel multiplier
            output = torch.bmm(weight.flatten(1)[:, None], patches.repeat_interleave(each, 0))
            found.setdefault(name, [[] for _ in batches])[number].append(output[:, 0])
    return found


def gather(
    model: nn.Module, conv: nn.Module, outputs: Sequence[Sequence[Tensor]], settings: Settings
) -> Statistics:
    """Run a network up to the last call of one layer and gather what enters it, in all calls.

    Args:
        model: the network as it is now.
        conv: the layer's convolution.
        outputs: of `original_outputs`, with the same settings.
        settings: images, and how many places in each.

    Raises:
        KeyFiltersError: the layer is called more or less often than in the original network.
    """
    sums: list[Tensor] = []
    for number, batch in enumerate(settings.images.split(settings.batch_size)):
        calls = calls_of(model, {"": conv}, batch, {"": len(outputs[number])})
        if len(calls) != len(outputs[number]):
            raise KeyFiltersError("a layer is called more or less often than before the surgery")
        for (_, call), old in zip(calls, outputs[number], strict=True):
            patches = call.patches(settings.places, settings.generator(number)).double()
            patches = patches.repeat_interleave(len(call.weight) // len(patches), 0)
            output = old[:, :, None].double()
            parts = [
                torch.bmm(patches, patches.transpose(1, 2)),
                torch.bmm(patches, output)[:, :, 0],
                patches.sum(2),
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
    a, b = a.gather(1, index), b.gather(1, index)
    return index[:, 0].cpu().numpy(), a[:, 0].cpu().numpy(), b[:, 0].cpu().numpy()


def output_shares(
    filters: NDArray[np.float64],
    shapes: NDArray[np.float64],
    statistics: Statistics,
    ridge: float,
) -> NDArray[np.float64]:
    """Share of each filter's output variance that the best a · x + b of each shape keeps.

    Args:
        filters: as for `choose`.
        shapes: as for `choose`.
        statistics: of the unchanged network.
        ridge: as for `choose`.

    Returns:
        ``(C, K)`` in [0, 1]. The ridge counts as white noise in the inputs.
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

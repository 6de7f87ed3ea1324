"""Principal curves and surfaces of filters: a code of one or two numbers, and what it decodes to.

The decoder and the cosine loss are those of babaiee2024unveiling. Its encoder network is replaced
by its ideal: the code of a filter is the one whose decoded filter is most similar. The codes lie on
a fine grid of [0, 1], so that the loss ``Σᵢ 1 - <fᵢ, d(cᵢ)>`` depends on the filters only through
their sum at every grid point, and a training step costs the same for a thousand filters as for a
million.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes
from keyfilters.threads import one_thread

__all__ = ["PrincipalCurve", "distinct_prototypes", "fit_together", "unit_form"]


@dataclass(frozen=True)
class CodeSpace:
    """How much a code can tell.

    Attributes:
        dimensions: 1 or 2.
        resolution: grid points along each axis of [0, 1].
        bandwidth: highest cosine frequency, in half-periods over [0, 1], that the decoder sees; it
            bounds how often the decoded curve or surface can turn.
        start: number of k-means prototypes from which the decoder starts.
    """

    dimensions: int
    resolution: int
    bandwidth: int
    start: int

    @classmethod
    def default(cls, dimensions: int) -> CodeSpace:
        """Return the code space used throughout for one or two dimensions."""
        if dimensions == 1:
            return cls(1, resolution=256, bandwidth=16, start=32)
        if dimensions == 2:
            return cls(2, resolution=12, bandwidth=2, start=32)
        raise ValueError(f"a code has 1 or 2 dimensions, got {dimensions}")

    def grid(self) -> Tensor:
        """All codes, ``(resolution ** dimensions, dimensions)`` in (0, 1)."""
        axis = (torch.arange(self.resolution) + 0.5) / self.resolution
        return torch.cartesian_prod(*[axis] * self.dimensions).reshape(-1, self.dimensions)

    def features(self, codes: Tensor) -> Tensor:
        """Products of cosines ``cos(π k c)``, k = 0 .. bandwidth, of ``(m, dimensions)`` codes."""
        waves = torch.arange(self.bandwidth + 1, device=codes.device) * math.pi
        features = torch.cos(codes[:, :1] * waves)
        for axis in range(1, self.dimensions):
            other = torch.cos(codes[:, axis, None] * waves)
            features = (features[:, :, None] * other[:, None, :]).flatten(1)
        return features / math.sqrt(self.bandwidth)


class PrincipalCurve:
    """A curve of filters (or a surface), on which each filter has the code of the nearest one.

    Args:
        dimensions: of the code, 1 or 2.
        seed: of k-means and of the decoder's initial weights.
        space: how much a code can tell; default: `CodeSpace.default`.
        steps: gradient steps on the decoder, the first two fifths on the k-means start.
        device: where to train.

    Attributes:
        codes_: ``(G, dimensions)`` grid of codes in (0, 1).
        decoded_: ``(G, taps)`` decoded filters, centred and of unit norm.

    >>> unit = np.eye(9, dtype=np.float32) - 1 / 9
    >>> unit = np.tile(unit / np.linalg.norm(unit, axis=1, keepdims=True), (8, 1))
    >>> curve = PrincipalCurve(steps=100).fit(unit)
    >>> curve.decoded_.shape
    (256, 9)
    """

    codes_: NDArray[np.float32]
    decoded_: NDArray[np.float32]

    def __init__(
        self,
        dimensions: int = 1,
        seed: int = 0,
        *,
        space: CodeSpace | None = None,
        steps: int = 400,
        device: str = "cpu",
    ) -> None:
        self.space = space or CodeSpace.default(dimensions)
        self.seed = seed
        self.steps = steps
        self.device = device

    def fit(self, unit: NDArray[np.float32]) -> PrincipalCurve:
        """Train on ``(n, taps)`` centred unit filters."""
        fit_together([self], [unit])
        return self

    def as_prototypes(self) -> PrototypeSet:
        """Return the decoded filters as prototypes: the nearest one's code is the filter's code."""
        return PrototypeSet(self.decoded_)


def distinct_prototypes(decoded: NDArray[np.float32]) -> float:
    """Length of a 1-D code's curve on the sphere, in diameters of a ball of cosine 0.8.

    About so many prototypes with no overlap at a dissimilarity of 0.2 lie on it: the freedom that
    this code has, to be compared with the number of centres of k-means.

    Args:
        decoded: ``(G, taps)`` decoded filters in order of the code.
    """
    step = np.clip((decoded[1:] * decoded[:-1]).sum(1), -1, 1)
    return float(np.arccos(step).sum() / (2 * math.acos(0.8)))


@one_thread()
def fit_together(curves: Sequence[PrincipalCurve], units: Sequence[NDArray[np.float32]]) -> None:
    """Train curves of one code space, each on filters of its own, as one batch.

    Their decoders do not see each other; a batch only saves the overhead of single steps.

    Args:
        curves: with the same space, steps and device.
        units: for each, ``(n, taps)`` centred unit filters; n may differ.
    """
    space, steps, device = curves[0].space, curves[0].steps, curves[0].device
    codes = space.grid()
    features = space.features(codes).to(device)
    targets = [
        _start(unit, space, curve.seed, codes) for unit, curve in zip(units, curves, strict=True)
    ]
    target = torch.stack(targets).to(device)
    filters = [torch.tensor(unit, device=device) for unit in units]
    decoder = _Decoders(features.shape[1], units[0].shape[1], [a.seed for a in curves])
    decoder = decoder.to(device)
    optimiser = torch.optim.Adam(decoder.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    warm_up = 2 * steps // 5
    for step in range(steps):
        decoded = unit_form(decoder(features))
        if step >= warm_up and step % 10 == 0:
            pairs = zip(filters, decoded.detach(), strict=True)
            target = torch.stack([_sum_by_code(f, d) / len(f) for f, d in pairs])
        optimiser.zero_grad()
        (-(target * decoded).sum()).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        decoded = unit_form(decoder(features)).cpu()
    for curve, found in zip(curves, decoded, strict=True):
        curve.codes_, curve.decoded_ = codes.numpy(), found.numpy().copy()


class _Decoders(nn.Module):
    """Perceptrons with one hidden layer of 64, one a seed, with the initial weights of PyTorch."""

    def __init__(self, inputs: int, outputs: int, seeds: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        shapes = ((inputs, hidden, inputs), (1, hidden, inputs), (hidden, outputs, hidden),
                  (1, outputs, hidden))  # fmt: skip
        drawn: list[list[Tensor]] = [[] for _ in shapes]
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for weights, (rows, columns, fan_in) in zip(drawn, shapes, strict=True):
                bound = 1 / math.sqrt(fan_in)
                weights.append((2 * torch.rand(rows, columns, generator=generator) - 1) * bound)
        self.weights = nn.ParameterList(torch.stack(weights) for weights in drawn)

    def forward(self, features: Tensor) -> Tensor:
        first, first_bias, second, second_bias = self.weights
        hidden = nn.functional.gelu(features @ first + first_bias)
        return hidden @ second + second_bias


def _start(unit: NDArray[np.float32], space: CodeSpace, seed: int, codes: Tensor) -> Tensor:
    """First target of a decoder: k-means prototypes, similar ones at neighbouring codes."""
    centres = kmeans_prototypes(unit, space.start, seed)
    place = _arrange(centres, space.dimensions, seed)
    nearest = torch.cdist(codes, torch.tensor(place, dtype=torch.float32)).argmin(1)
    return torch.tensor(centres)[nearest] / len(codes)


def unit_form(filters: Tensor) -> Tensor:
    """Centre filters ``(..., taps)`` and scale them to unit norm, differentiably."""
    centred = filters - filters.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _sum_by_code(filters: Tensor, decoded: Tensor, step: int = 1 << 16) -> Tensor:
    """Sum of the filters at the code that decodes nearest to each: ``(G, taps)``."""
    total = torch.zeros_like(decoded)
    for part in filters.split(step):
        cosine = part @ decoded.T
        # NumPy's argmax along rows is several times faster than PyTorch's on the CPU.
        nearest = cosine.argmax(1) if cosine.is_cuda else torch.tensor(cosine.numpy().argmax(1))
        total.index_add_(0, nearest, part)
    return total


def _arrange(centres: NDArray[np.float32], dimensions: int, seed: int) -> NDArray[np.float64]:
    """Give every prototype a place in [0, 1]^dimensions so that similar ones are neighbours.

    One dimension: the leaf order of a dendrogram with the least sum of distances between
    neighbours. Two: t-SNE, then ranks along each axis.
    """
    count = len(centres)
    if count < 2 * dimensions + 2:
        return np.random.default_rng(seed).random((count, dimensions))
    if dimensions == 1:
        from scipy.cluster.hierarchy import leaves_list, linkage

        order = leaves_list(linkage(centres, "average", optimal_ordering=True))
        rank = np.empty((count, 1))
        rank[order, 0] = np.arange(count)
    else:
        from sklearn.manifold import TSNE

        tsne = TSNE(2, perplexity=min(10, count / 4), init="pca", random_state=seed)
        rank = tsne.fit_transform(centres).argsort(0).argsort(0).astype(float)
    return (rank + 0.5) / count

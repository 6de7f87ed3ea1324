"""Principal curves and surfaces of filters: a code of one or two numbers, and what it decodes to.

The decoder and the cosine loss are those of babaiee2024unveiling. Its encoder network is replaced
by its ideal: the code of a filter is the one whose decoded filter is most similar. The codes lie on
a fine grid of [0, 1], so that the loss ``Σᵢ 1 - <fᵢ, d(cᵢ)>`` depends on the filters only through
their sum at every grid point, and a training step costs the same for a thousand filters as for a
million.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from keyfilters.clusters.estimator import Estimator, load_estimator, save_estimator
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes, nearest_prototype
from keyfilters.errors import refuse_damage
from keyfilters.threads import one_thread

__all__ = ["START", "PrincipalCurve", "distinct_prototypes", "fit_together", "unit_form"]

TINY = 1e-12
START = 32  # k-means prototypes from which a curve starts


@dataclass(frozen=True)
class CodeSpace:
    """How much a code can tell.

    Attributes:
        dimensions: 1 or 2.
        resolution: grid points along each axis of [0, 1].
        bandwidth: highest cosine frequency, in half-periods over [0, 1], that the decoder sees; it
            bounds how often the decoded curve or surface can turn.
    """

    dimensions: int
    resolution: int
    bandwidth: int

    @classmethod
    def default(cls, dimensions: int) -> CodeSpace:
        """Return the code space used throughout for one or two dimensions."""
        if dimensions == 1:
            return cls(1, resolution=256, bandwidth=16)
        if dimensions == 2:
            return cls(2, resolution=12, bandwidth=2)
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


class PrincipalCurve(Estimator):
    """A curve of filters (or a surface), on which each filter has the code of the nearest one.

    Args:
        dimensions: of the code, 1 or 2.
        seed: of k-means and of the decoder's initial weights.
        space: how much a code can tell; None for `CodeSpace.default`.
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
        self.dimensions = dimensions
        self.seed = seed
        self.space = space
        self.steps = steps
        self.device = device

    @property
    def code_space(self) -> CodeSpace:
        """The space of its codes."""
        return self.space or CodeSpace.default(self.dimensions)

    def fit(self, unit: NDArray[np.float32], y: None = None) -> PrincipalCurve:
        """Train on ``(n, taps)`` centred unit filters; `y` is taken for scikit-learn."""
        fit_together([self], [unit])
        return self

    def predict(self, unit: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the place ``(n,)`` in `decoded_` of what is most similar to each filter."""
        return nearest_prototype(unit, self.decoded_)[0]

    def transform(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the codes ``(n, dimensions)`` in (0, 1) of ``(n, taps)`` centred unit filters."""
        return self.codes_[self.predict(unit)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the options, the codes and the decoded filters as one safetensors file."""
        options = self.get_params()
        options["space"] = None if self.space is None else asdict(self.space)
        save_estimator(path, self, options, {"codes": self.codes_, "decoded": self.decoded_})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrincipalCurve:
        """Read a file that `save` wrote.

        Raises:
            SourceError: it is missing, damaged, or of another kind.
        """
        with refuse_damage(path, "a principal curve"):
            options, tensors = load_estimator(path, cls)
            space = options.pop("space")
            curve = cls(space=None if space is None else CodeSpace(**space), **options)
            curve.codes_, curve.decoded_ = tensors["codes"], tensors["decoded"]
            return curve

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
def fit_together(
    curves: Sequence[PrincipalCurve],
    units: Sequence[NDArray[np.float32]],
    centres: Sequence[NDArray[np.float32]] | None = None,
) -> None:
    """Train curves of one code space, each on filters of its own, as one batch.

    Their decoders do not see each other; a batch only saves the overhead of single steps.

    Args:
        curves: with the same space, steps and device.
        units: for each, ``(n, taps)`` centred unit filters; n may differ.
        centres: for each, the `START` k-means prototypes of its filters from which it starts;
            default: found here.
    """
    space, steps, device = curves[0].code_space, curves[0].steps, curves[0].device
    codes = space.grid()
    features = space.features(codes).to(device)
    if centres is None:
        centres = [
            kmeans_prototypes(unit, START, c.seed) for unit, c in zip(units, curves, strict=True)
        ]
    starts = [_start(found, codes, c.seed) for found, c in zip(centres, curves, strict=True)]
    target = torch.stack(starts).to(device)
    filters = [torch.tensor(unit, device=device) for unit in units]
    decoder = _Decoders(features.shape[1], units[0].shape[1], [a.seed for a in curves])
    decoder = decoder.to(device)
    optimiser = _Adam(list(decoder.parameters()))
    warm_up = 2 * steps // 5
    for step in range(steps):
        centred = decoder(features)
        norm = centred.norm(dim=-1).clamp_min(TINY)
        if step >= warm_up and step % 10 == 0:
            decoded = centred.detach() / norm.detach()[..., None]
            pairs = zip(filters, decoded, strict=True)
            target = torch.stack([_sum_by_code(f, d) / len(f) for f, d in pairs])
        # Cheaper than products with unit forms, and the same.
        loss = -((target * centred).sum(-1) / norm).sum()
        optimiser.step(loss, _one_cycle((step + 0.5) / steps, highest=2e-2))
    with torch.no_grad():
        decoded = unit_form(decoder(features)).cpu()
    for curve, found in zip(curves, decoded, strict=True):
        curve.codes_, curve.decoded_ = codes.numpy(), found.numpy().copy()


class _Decoders(nn.Module):
    """Perceptrons with one hidden layer of 64, one a seed, with the initial weights of PyTorch.

    What they decode to is centred, since the weights that lead to it are.
    """

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
        features = features.expand(len(first), -1, -1)
        hidden = nn.functional.gelu(torch.baddbmm(first_bias, features, first))
        weights, bias = (x - x.mean(-1, keepdim=True) for x in (second, second_bias))
        return torch.baddbmm(bias, hidden, weights)


class _Adam:
    """Adam by PyTorch's own kernel; its optimiser classes import the compiler, which takes seconds.

    Args:
        weights: to train.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        self.first = [torch.zeros_like(w) for w in weights]
        self.second = [torch.zeros_like(w) for w in weights]
        self.steps = [torch.zeros((), device=w.device) for w in weights]

    def step(self, loss: Tensor, rate: float) -> None:
        """Move the weights down the gradient of a loss at this learning rate."""
        gradients = list(torch.autograd.grad(loss, self.weights))
        with torch.no_grad():
            adam(
                self.weights, gradients, self.first, self.second, [], self.steps, fused=True,
                foreach=False, amsgrad=False, beta1=0.9, beta2=0.999, lr=rate, weight_decay=0.0,
                eps=1e-8, maximize=False,
            )  # fmt: skip


def _one_cycle(passed: float, highest: float) -> float:
    """Learning rate after a share of the steps: up for three tenths, then down to nearly 0."""
    if passed < 0.3:
        return highest * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * passed / 0.3)))
    return highest * 0.5 * (1 + math.cos(math.pi * (passed - 0.3) / 0.7))


def _start(centres: NDArray[np.float32], codes: Tensor, seed: int) -> Tensor:
    """First target of a decoder: k-means prototypes, similar ones at neighbouring codes."""
    place = _arrange(centres, codes.shape[1], seed)
    nearest = torch.cdist(codes, torch.tensor(place, dtype=torch.float32)).argmin(1)
    return torch.tensor(centres)[nearest] / len(codes)


def unit_form(filters: Tensor) -> Tensor:
    """Centre filters ``(..., taps)`` and scale them to unit norm, differentiably."""
    centred = filters - filters.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(TINY)


def _sum_by_code(filters: Tensor, decoded: Tensor) -> Tensor:
    """Sum of the filters at the code that decodes nearest to each: ``(G, taps)``."""
    total = torch.zeros_like(decoded)
    for part in filters.split(65536 if filters.is_cuda else 1024):  # its products fit a CPU's cache
        cosine = part @ decoded.T
        # NumPy's argmax along rows is several times faster than PyTorch's on the CPU.
        nearest = cosine.argmax(1) if cosine.is_cuda else torch.tensor(cosine.numpy().argmax(1))
        total.index_add_(0, nearest, part)
    return total


def _arrange(centres: NDArray[np.float32], dimensions: int, seed: int) -> NDArray[np.float64]:
    """Give every prototype a place in [0, 1]^dimensions so that similar ones are neighbours.

    One dimension: the leaf order of a dendrogram with the least sum of distances between
    neighbours. Two: ranks along the two main axes.
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
        left, values, _ = np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)
        rank = (left * values)[:, :dimensions].argsort(0).argsort(0).astype(float)
    return (rank + 0.5) / count

"""The methods whose coverage is compared: codes of one and two numbers, k-means, ideal forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.principal_curve import START, PrincipalCurve, fit_together
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes
from keyfilters.receptive_fields import build_dictionary

__all__ = [
    "IDEALISED",
    "KMEANS",
    "ONE_DIMENSION",
    "Fitted",
    "Problem",
    "coverage_methods",
    "idealised",
]

KMEANS = (8, 16, 32, 64)
ONE_DIMENSION, IDEALISED = "autoencoder 1-D", "idealised filters"

Array = NDArray[np.float32]


class Fitted(Protocol):
    """A method after fitting: it says how far filters are from what it can represent."""

    def dissimilarity(self, unit: Array) -> Array:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters."""
        ...


class Problem:
    """Filters to which every method is fitted with one seed; their k-means is done once.

    Args:
        unit: ``(n, taps)`` centred unit filters.
        seed: of every method.
    """

    def __init__(self, unit: Array, seed: int) -> None:
        self.unit, self.seed = unit, seed
        self._found: dict[int, Array] = {}

    def kmeans(self, count: int) -> Array:
        """Return the ``(count, taps)`` k-means prototypes of the filters."""
        if count not in self._found:
            self._found[count] = kmeans_prototypes(self.unit, count, self.seed)
        return self._found[count]


# Fits one method to several problems.
Method = Callable[[Sequence[Problem]], list[Fitted]]


def coverage_methods(*, feed_forward: bool, device: str) -> dict[str, Method]:
    """Return the methods that are fitted, by name.

    Args:
        feed_forward: whether the encoder network of babaiee2024unveiling is among them.
        device: where autoencoders are trained.
    """
    methods: dict[str, Method] = {
        ONE_DIMENSION: _code(1, device),
        "autoencoder 2-D": _code(2, device),
    }
    if feed_forward:
        methods["feed-forward autoencoder 1-D"] = lambda problems: [
            FeedForwardAutoencoder(1, p.seed).fit(p.unit) for p in problems
        ]
    return methods | {f"k-means {count}": _kmeans(count) for count in KMEANS}


def idealised(size: tuple[int, int]) -> PrototypeSet:
    """Return the dictionary of idealised filters, which stand for both signs."""
    atoms = build_dictionary(size).atoms
    return PrototypeSet(atoms.reshape(len(atoms), -1), either_sign=True)


def _code(dimensions: int, device: str) -> Method:
    def fit(problems: Sequence[Problem]) -> list[Fitted]:
        curves = [PrincipalCurve(dimensions, p.seed, device=device) for p in problems]
        fit_together(curves, [p.unit for p in problems], [p.kmeans(START) for p in problems])
        return [curve.as_prototypes() for curve in curves]

    return fit


def _kmeans(count: int) -> Method:
    return lambda problems: [PrototypeSet(p.kmeans(count)) for p in problems]

"""The methods whose coverage is compared: codes of one and two numbers, k-means, ideal forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.principal_curve import PrincipalCurve, fit_together
from keyfilters.clusters.prototypes import PrototypeSet, kmeans_prototypes
from keyfilters.receptive_fields import build_dictionary

__all__ = ["IDEALISED", "KMEANS", "ONE_DIMENSION", "Fitted", "coverage_methods", "idealised"]

KMEANS = (8, 16, 32, 64)
ONE_DIMENSION, IDEALISED = "autoencoder 1-D", "idealised filters"

Array = NDArray[np.float32]


class Fitted(Protocol):
    """A method after fitting: it says how far filters are from what it can represent."""

    def dissimilarity(self, unit: Array) -> Array:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters."""
        ...


# Fits one method to several sets of filters, each with a seed of its own.
Method = Callable[[Sequence[tuple[Array, int]]], list[Fitted]]


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
            FeedForwardAutoencoder(1, seed).fit(unit) for unit, seed in problems
        ]
    return methods | {f"k-means {count}": _kmeans(count) for count in KMEANS}


def idealised(size: tuple[int, int]) -> PrototypeSet:
    """Return the dictionary of idealised filters, which stand for both signs."""
    atoms = build_dictionary(size).atoms
    return PrototypeSet(atoms.reshape(len(atoms), -1), either_sign=True)


def _code(dimensions: int, device: str) -> Method:
    def fit(problems: Sequence[tuple[Array, int]]) -> list[Fitted]:
        curves = [PrincipalCurve(dimensions, seed, device=device) for _, seed in problems]
        fit_together(curves, [unit for unit, _ in problems])
        return [curve.as_prototypes() for curve in curves]

    return fit


def _kmeans(count: int) -> Method:
    return lambda problems: [
        PrototypeSet(kmeans_prototypes(unit, count, seed)) for unit, seed in problems
    ]

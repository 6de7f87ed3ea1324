"""The filters of one layer, prepared once for all rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.nulls import null_units
from keyfilters.scalespace import centred_unit, why_unusable

__all__ = ["LayerFilters", "layers_by_model"]

Floats = NDArray[np.float64]
GRID = 32  # samples of the spectrum along either axis


@dataclass(eq=False)
class LayerFilters:
    """One layer and what the rules measure on it, computed when first asked for.

    Attributes:
        layer: the layer.
        seed: of its null filters.
    """

    layer: Layer
    seed: int = 0

    def __len__(self) -> int:
        return len(self.layer.weight)

    @cached_property
    def flaw(self) -> NDArray[np.object_]:
        """Why each filter has no shape, or "", as of `keyfilters.scalespace.why_unusable`."""
        return why_unusable(self.layer.weight)

    @cached_property
    def usable(self) -> NDArray[np.int64]:
        """Channels of the filters that have a shape."""
        return np.flatnonzero(self.flaw == "")

    @cached_property
    def finite(self) -> NDArray[np.int64]:
        """Channels of the filters without a NaN or infinite tap."""
        return np.flatnonzero(self.flaw != "non-finite")

    @cached_property
    def flat(self) -> Floats:
        """``(n, taps)`` all filters in float64."""
        return self.layer.weight.reshape(len(self), -1).astype(np.float64)

    @cached_property
    def norm(self) -> Floats:
        """``(n,)`` Euclidean norms."""
        return np.asarray(np.linalg.norm(self.flat, axis=1))

    @cached_property
    def unit(self) -> Floats:
        """``(m, taps)`` centred unit forms of the usable filters."""
        return centred_unit(self.flat[self.usable]).astype(np.float64)

    @cached_property
    def null_unit(self) -> Floats:
        """``(m, taps)`` null filters with the tap covariance of the usable ones."""
        unit = self.unit.astype(np.float32)
        return null_units(unit, self.layer.size, "covariance", self.seed).astype(np.float64)

    @property
    def freedom(self) -> int:
        """Number of dimensions in which centred unit forms lie: one less than the taps."""
        return self.flat.shape[1] - 1

    @cached_property
    def spectrum(self) -> Floats:
        """``(32, 32)`` mean power spectrum of the centred unit forms, of sum 1."""
        forms = self.unit.reshape(-1, *self.layer.size)
        power = np.abs(np.fft.fft2(forms, s=(GRID, GRID))) ** 2
        mean = power.mean(axis=0)
        return np.asarray(mean / mean.sum())

    @property
    def frequencies(self) -> tuple[Floats, Floats]:
        """``(32, 1)`` and ``(1, 32)`` absolute frequencies of the spectrum, cycles a tap."""
        frequency = np.abs(np.fft.fftfreq(GRID))
        return frequency[:, None], frequency[None]


def layers_by_model(bank: FilterBank, seed: int) -> Iterator[tuple[str, list[LayerFilters]]]:
    """Yield each model's name and its layers, prepared."""
    for model in bank.models:
        yield model, [LayerFilters(layer, seed) for layer in bank.layers if layer.model == model]

"""What may not suffer when a candidate is dropped, one object a criterion."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import SeedSequence
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.discovery.elimination import Elimination, eliminate
from keyfilters.discovery.functional import eliminate_by_answers
from keyfilters.discovery.result import curve_of
from keyfilters.discovery.shares import OutputShares, explained_shares
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.input_covariance import Settings
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_units
from keyfilters.seeds import child_seed
from keyfilters.sizes import Window

__all__ = ["CRITERIA", "Criterion", "check_criterion", "make_criterion"]

# Name of a criterion -> what it must be given.
CRITERIA: dict[str, tuple[str, ...]] = {
    "variance": (),
    "outputs": ("model", "images"),
    "agreement": ("model", "images"),
    "accuracy": ("model", "images", "labels"),
}


def check_criterion(name: str) -> None:
    """Raise a KeyFiltersError if no criterion has this name."""
    if name not in CRITERIA:
        known = ", ".join(CRITERIA)
        raise KeyFiltersError(f"criterion is {name!r}; there are: {known}{nearest(name, CRITERIA)}")


Dropped = tuple[Elimination, pd.DataFrame]


@dataclass(frozen=True, eq=False)
class Criterion:
    """The explained variance of the filters over their taps; the base of the other criteria.

    Attributes:
        unit: ``(n, taps)`` centred filters of unit norm that are searched.
        size: window ``(k_y, k_x)``.
        weight: ``(n, 1)`` of every filter, of sum 1.
        exchanges: whether the keys are in the end exchanged for candidates that gain more.
    """

    unit: NDArray[np.float32]
    size: Window
    weight: NDArray[np.float32]
    exchanges: bool = True

    def gains(self, pool: KeySet) -> NDArray[np.floating]:
        """Return what each candidate gains for each filter, ``(n, N)``."""
        return explained_shares(self.unit, pool) * self.weight

    def drop(self, pool: KeySet, gains: NDArray[np.floating], place: int) -> Dropped:
        """Drop the candidates one by one in round `place`; return the order and the curve."""
        eliminated = eliminate(gains)
        return eliminated, curve_of(place, pool, eliminated.order, gains)

    def on_null(self, kind: str, seed: SeedSequence) -> Criterion:
        """Return the criterion on null filters, see `keyfilters.null_bank`."""
        weights, group = np.unique(self.weight, return_inverse=True)
        if len(weights) == 1:
            return Criterion(null_units(self.unit, self.size, kind, seed), self.size, self.weight)
        # The covariance of all filters alike is not that of what is measured here.
        unit = np.empty_like(self.unit)
        for number in range(len(weights)):
            own, stream = group.ravel() == number, child_seed(seed, "weight", number)
            unit[own] = null_units(self.unit[own], self.size, kind, stream)
        return Criterion(unit, self.size, self.weight)


@dataclass(frozen=True, eq=False)
class Outputs(Criterion):
    """The variance that is kept of what the filters of a network give on images."""

    outputs: OutputShares | None = None

    def gains(self, pool: KeySet) -> NDArray[np.floating]:
        assert self.outputs is not None
        shares = self.outputs(pool)
        return shares / len(shares)

    def on_null(self, kind: str, seed: SeedSequence) -> Criterion:
        assert self.outputs is not None
        unit = super().on_null(kind, seed).unit
        return replace(self, unit=unit, outputs=self.outputs.on_null(kind, seed))


@dataclass(frozen=True, eq=False)
class Answers(Criterion):
    """The answers of a network; on a null, which no network holds, the explained variance."""

    exchanges: bool = False
    search: Callable[[KeySet], Dropped] | None = None

    def drop(self, pool: KeySet, gains: NDArray[np.floating], place: int) -> Dropped:
        assert self.search is not None
        eliminated, answers = self.search(pool)
        return eliminated, curve_of(place, pool, eliminated.order, gains).merge(answers, on="keys")


def make_criterion(
    name: str,
    unit: NDArray[np.float32],
    size: Window,
    weight: NDArray[np.float32],
    given: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None,
    seed: int,
    progress: Callable[[str], None],
) -> Criterion:
    """Make a criterion of `CRITERIA`.

    Args:
        name: of the criterion.
        unit: ``(n, taps)`` centred filters of unit norm.
        size: window ``(k_y, k_x)``.
        weight: ``(n, 1)`` of every filter, of sum 1.
        given: model, images and labels, as far as the criterion needs them.
        folder: keeps the drops made by answers, from which a search that was cut off goes on.
        seed: of everything random.
        progress: called with the name of every step.

    Raises:
        KeyFiltersError: the network has no filters of that size.
    """
    if name == "variance":
        return Criterion(unit, size, weight)
    model: nn.Module = given["model"]
    images: Tensor = given["images"]
    if name == "outputs":
        progress("what the filters give")
        outputs = OutputShares(model, size, Settings(images, seed=seed))
        return Outputs(unit, size, weight, outputs=outputs)
    labels: Tensor | None = given["labels"] if name == "accuracy" else None

    def search(pool: KeySet) -> Dropped:
        return eliminate_by_answers(model, pool, images, labels, folder=folder, progress=progress)

    return Answers(unit, size, weight, search=search)

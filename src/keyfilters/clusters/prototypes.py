"""Prototypes: finding a few filters that stand for many, and how many they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfilters.columns import GRAIN
from keyfilters.learned_filters import kmeans_prototypes

__all__ = ["PrototypeSet", "kmeans_prototypes", "nearest_prototype"]


def nearest_prototype(
    unit: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    *,
    either_sign: bool = False,
    chunk: int = 1 << 18,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return every filter's most similar prototype.

    Args:
        unit: ``(n, taps)`` centred, of unit norm.
        prototypes: ``(K, taps)`` centred, of unit norm.
        either_sign: whether a prototype also stands for its negative.
        chunk: inner products held at a time, about; few enough to stay in the cache.

    Returns:
        Index ``(n,)`` and dissimilarity ``(n,)``, 1 minus the (absolute) cosine.
    """
    index = np.empty(len(unit), dtype=np.int64)
    cosine = np.empty(len(unit), dtype=np.float32)
    step = min(GRAIN, 2 ** max(0, (chunk // max(1, len(prototypes))).bit_length() - 1))
    for start in range(0, len(unit), step):
        part = slice(start, start + step)
        similarity = unit[part] @ prototypes.T
        if either_sign:
            np.abs(similarity, out=similarity)
        index[part] = similarity.argmax(axis=1)
        cosine[part] = similarity[np.arange(len(similarity)), index[part]]
    return index, 1 - cosine


@dataclass(frozen=True, eq=False)
class PrototypeSet:
    """Prototypes that some method found, and how well they stand for other filters.

    Attributes:
        prototypes: ``(K, taps)`` centred, of unit norm.
        either_sign: whether a prototype also stands for its negative.
    """

    prototypes: NDArray[np.float32]
    either_sign: bool = False

    def __len__(self) -> int:
        return len(self.prototypes)

    def dissimilarity(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters to their nearest prototype."""
        return nearest_prototype(unit, self.prototypes, either_sign=self.either_sign)[1]

    def most_covering(
        self,
        unit: NDArray[np.float32],
        counts: Sequence[int],
        threshold: float,
        seed: int,
        *,
        sample: int = 2000,
    ) -> dict[int, PrototypeSet]:
        """Choose, one after another, the prototype that covers most of what is still uncovered.

        Args:
            unit: ``(n, taps)`` filters to cover.
            counts: numbers of prototypes wanted; those above ``len(self)`` are left out.
            threshold: dissimilarity below which a filter counts as covered.
            seed: of the sample of filters on which the choice is made.
            sample: size of that sample.

        Returns:
            For every count the prototypes chosen.
        """
        if len(unit) > sample:
            unit = unit[np.random.default_rng(seed).choice(len(unit), sample, replace=False)]
        similarity = unit @ self.prototypes.T
        covers = (np.abs(similarity) if self.either_sign else similarity) > 1 - threshold
        counts = [count for count in counts if count <= len(self)]
        left = np.ones(len(unit), dtype=bool)
        gain = covers.sum(axis=0)  # filters that a prototype covers and none of those chosen does
        chosen: list[int] = []
        while counts and len(chosen) < max(counts):
            best = int(gain.argmax())
            newly = left & covers[:, best]
            gain -= covers[newly].sum(axis=0)
            gain[best] = -len(unit)  # never again
            left &= ~newly
            chosen.append(best)
        return {n: PrototypeSet(self.prototypes[chosen[:n]], self.either_sign) for n in counts}

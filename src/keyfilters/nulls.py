"""Null filters: the same bank without its structure. A claim is worth what it exceeds on these.

From weak to strict. *White*: independent Gaussian taps. *Tap-permuted*: every filter's own values
in random order. *Covariance*: Gaussian filters with the mean and the tap covariance of the bank.
*Phase*: every filter keeps its own power spectrum on the torus of its window, with random phases,
a standard surrogate in neuroscience. Trained filters are smooth, and smooth noise looks like
receptive fields, so that only the last two tell structure from smoothness.

The layers of a network are not equally smooth, and noise that mixes smoothnesses is not Gaussian
noise of one covariance: a covariance of every layer is stricter still, see `null_bank`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.seeds import child_seed
from keyfilters.threads import one_thread

__all__ = [
    "FILTERS_PER_TAP",
    "NULLS",
    "null_bank",
    "null_filters",
    "null_units",
    "null_units_by_layer",
]

Array = NDArray[np.float32]

NULLS = {
    "white": "Gaussian filters",
    "tap-permuted": "the same filters with taps shuffled",
    "covariance": "Gaussian filters with the same tap covariance",
    "phase": "filters with the same power spectra and random phases",
}
FILTERS_PER_TAP = 5  # usable filters from which on their covariance is trusted, per tap
MATCHED_ON = (4096, 65_536)  # draws, at least and at most, on which the covariance is matched
MATCHED_TO = 1e-3  # relative error of the covariance, Frobenius norm
MATCHING_STEPS = 200
GAIN, PATIENCE = 0.01, 3  # share by which a step must come nearer, and steps in vain


def null_bank(
    bank: FilterBank, kind: str, seed: int | SeedSequence = 0, *, by_layer: bool = False
) -> FilterBank:
    """Return the same bank without structure: same layers, sizes, norms and means.

    Every usable filter is replaced by a null filter with the norm and the mean of the filter;
    filters without a shape (see `keyfilters.scalespace.why_unusable`) stay as they are. The
    covariance of kind ``"covariance"`` is that of all usable filters of a kernel size.

    Args:
        bank: any bank.
        kind: ``"white"``, ``"tap-permuted"``, ``"covariance"`` or ``"phase"``, see `NULLS`.
        seed: of the null filters.
        by_layer: whether every layer with at least `FILTERS_PER_TAP` usable filters a tap has a
            covariance of its own, and those of one size with fewer share one.

    Raises:
        KeyFiltersError: an unknown kind.

    >>> from keyfilters.bank import Layer
    >>> weight = np.random.default_rng(0).normal(size=(50, 5, 5)).astype(np.float32)
    >>> bank = FilterBank([Layer("net", "conv", weight, (1, 1), (1, 1), 0.0)])
    >>> null_bank(bank, "phase")
    FilterBank(50 filters in 1 layer of 1 model; 5×5: 50)
    """
    _check(kind)
    layers = list(bank.layers)
    for size in bank.sizes:
        chosen = [i for i, layer in enumerate(layers) if layer.size == size]
        groups = [chosen]
        if by_layer:
            usable = {i: int((why_unusable(layers[i].weight) == "").sum()) for i in chosen}
            groups = _with_one_covariance(usable, size[0] * size[1])
        for number, group in enumerate(groups):
            filters = np.concatenate([layers[i].weight for i in group])
            stream = child_seed(seed, "group of layers", number) if by_layer else seed
            filters = null_filters(filters, kind, stream)
            parts = np.split(filters, np.cumsum([len(layers[i].weight) for i in group])[:-1])
            for i, weight in zip(group, parts, strict=True):
                layers[i] = replace(layers[i], weight=weight)
    return FilterBank(layers, bank.skipped)


def null_units_by_layer(
    unit: Array,
    layers: NDArray[np.int64],
    size: tuple[int, int],
    kind: str,
    seed: int | SeedSequence,
) -> Array:
    """Return null filters as `null_units` does, with a covariance of every large layer.

    Args:
        unit: ``(n, taps)`` centred, of unit norm.
        layers: ``(n,)`` number of the layer of every filter.
        size: window ``(k_y, k_x)``.
        kind: see `NULLS`.
        seed: of the null filters.

    Returns:
        ``(n, taps)``, the shapes of `null_bank` with ``by_layer=True``.

    Raises:
        KeyFiltersError: an unknown kind.
    """
    numbers, counts = np.unique(layers, return_counts=True)
    found = np.empty_like(unit)
    groups = _with_one_covariance(dict(zip(numbers, counts, strict=True)), unit.shape[1])
    for number, group in enumerate(groups):
        own = np.isin(layers, group)
        found[own] = null_units(unit[own], size, kind, child_seed(seed, "group of layers", number))
    return found


def _with_one_covariance(usable: Mapping[int, int], taps: int) -> list[list[int]]:
    """Divide layers, given their numbers of usable filters: large ones alone, the rest together."""
    large = [i for i, count in usable.items() if count >= FILTERS_PER_TAP * taps]
    rest = [i for i in usable if i not in large]
    return [*([i] for i in large), *([rest] if rest else [])]


def null_filters(
    filters: NDArray[np.floating], kind: str, seed: int | SeedSequence = 0
) -> NDArray[np.floating]:
    """Return filters without structure, each with the norm and the mean of the one it replaces.

    Args:
        filters: ``(n, k_y, k_x)``; those without a shape stay as they are. The covariance of kind
            ``"covariance"`` is that of all others.
        kind: see `NULLS`.
        seed: of the null filters.

    Returns:
        ``(n, k_y, k_x)``, of the type of `filters`; of integers, floats.

    Raises:
        KeyFiltersError: an unknown kind.

    >>> filters = np.random.default_rng(0).normal(1, 3, size=(40, 5, 5))
    >>> noise = null_filters(filters, "covariance")
    >>> np.allclose(noise.mean((1, 2)), filters.mean((1, 2))), np.allclose(noise, filters)
    (True, False)
    """
    _check(kind)
    found = filters.astype(np.result_type(filters, np.float16))  # a copy
    size = (filters.shape[1], filters.shape[2])
    usable = np.flatnonzero(why_unusable(filters) == "")
    if len(usable):
        flat = filters[usable].reshape(len(usable), -1).astype(np.float64)
        mean = flat.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(flat - mean, axis=1, keepdims=True)
        unit = null_units(centred_unit(flat), size, kind, seed)
        found[usable] = (mean + norm * unit).reshape(-1, *size)
    return found


@one_thread()
def null_units(
    unit: Array,
    size: tuple[int, int],
    kind: str,
    seed: int | SeedSequence,
    count: int | None = None,
) -> Array:
    """Return null filters of centred unit filters of one kernel size.

    Args:
        unit: ``(n, taps)`` centred, of unit norm.
        size: window ``(k_y, k_x)``.
        kind: see `NULLS`.
        seed: of the null filters; kinds and sizes have streams of their own.
        count: number of null filters; None for n, the i-th made from the i-th filter where the
            kind makes one from one.

    Returns:
        ``(count, taps)`` centred, of unit norm.

    Raises:
        KeyFiltersError: an unknown kind.
    """
    _check(kind)
    generator = np.random.default_rng(child_seed(seed, "null", kind, *size))
    if count is not None and kind in ("tap-permuted", "phase"):
        unit = unit[np.sort(generator.choice(len(unit), count, replace=count > len(unit)))]
    return _KINDS[kind](unit, size, generator, len(unit) if count is None else count)


def _white(unit: Array, size: tuple[int, int], generator: Generator, count: int) -> Array:
    return centred_unit(generator.standard_normal((count, unit.shape[1])))


def _tap_permuted(unit: Array, size: tuple[int, int], generator: Generator, count: int) -> Array:
    return generator.permuted(unit, axis=1)


def _covariance(unit: Array, size: tuple[int, int], generator: Generator, count: int) -> Array:
    """Draw from the Gaussian whose centred *unit* forms have the mean and covariance of `unit`.

    Scaling Gaussian filters to unit norm flattens their covariance (by a quarter on real banks), so
    that mean and covariance of the Gaussian are corrected until those of the unit forms agree, or
    come no nearer: those of a few filters, fewer than taps, cannot be met.
    """
    fewest, most = MATCHED_ON
    draws = generator.standard_normal((max(count, fewest), unit.shape[1]))
    wanted_mean, wanted = _moments(unit.astype(np.float64))
    mean, covariance = wanted_mean, wanted
    scale = max(float(np.linalg.norm(wanted)), 1e-12)
    error_of_best, best, vain = np.inf, (mean, covariance), 0
    for _ in range(MATCHING_STEPS):
        drawn_mean, drawn = _moments(_projected(draws[:most], mean, covariance))
        error = float(np.linalg.norm(drawn - wanted) + np.linalg.norm(drawn_mean - wanted_mean))
        vain = 0 if error < error_of_best * (1 - GAIN) else vain + 1
        if error < error_of_best:
            error_of_best, best = error, (mean, covariance)
        if error < MATCHED_TO * scale or vain == PATIENCE:
            break
        mean, covariance = mean + wanted_mean - drawn_mean, covariance + wanted - drawn
    return centred_unit(_projected(draws[:count], *best))


def _moments(unit: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = unit.mean(axis=0)
    return mean, (unit - mean).T @ (unit - mean) / len(unit)


def _projected(
    draws: NDArray[np.float64], mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gaussian filters with this mean and covariance, scaled to unit norm."""
    values, directions = np.linalg.eigh(covariance)
    root = directions * np.sqrt(values.clip(0)) @ directions.T
    filters = mean + draws @ root
    filters -= filters.mean(axis=1, keepdims=True)
    filters /= np.linalg.norm(filters, axis=1, keepdims=True).clip(1e-30)
    return filters


def _phase(unit: Array, size: tuple[int, int], generator: Generator, count: int) -> Array:
    spectrum = np.fft.fft2(unit.reshape(-1, *size).astype(np.float64))
    # The phases of real noise have the symmetry that makes the result real.
    noise = np.fft.fft2(generator.standard_normal((len(unit), *size)))
    filters = np.fft.ifft2(np.abs(spectrum) * noise / np.abs(noise)).real
    return centred_unit(filters)


_KINDS: dict[str, Callable[[Array, tuple[int, int], Generator, int], Array]] = {
    "white": _white,
    "tap-permuted": _tap_permuted,
    "covariance": _covariance,
    "phase": _phase,
}


def _check(kind: str) -> None:
    if kind not in NULLS:
        raise KeyFiltersError(
            f"no null is called {kind!r}; there are: {', '.join(NULLS)}{nearest(kind, NULLS)}"
        )

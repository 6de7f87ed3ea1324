"""Discovering universal keys: candidates, elimination, a second round, exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.bank import FilterBank
from keyfilters.claims import halves
from keyfilters.discovery.candidates import candidates, check_kinds, resampled
from keyfilters.discovery.elimination import Elimination, eliminate, exchange
from keyfilters.discovery.functional import eliminate_by_answers
from keyfilters.discovery.gains import OutputGains, explained
from keyfilters.discovery.number import number_of_keys
from keyfilters.discovery.result import Discovery, curve_of, models_of, served_by, weights
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.nulls import NULLS, null_units
from keyfilters.scalespace import centred_unit
from keyfilters.seeds import child_integer, child_seed
from keyfilters.surgery.outputs import Settings

__all__ = ["Discovery", "discover_keys"]

CRITERIA = {
    "variance": (),
    "outputs": ("model", "images"),
    "agreement": ("model", "images"),
    "accuracy": ("model", "images", "labels"),
}
SURVIVORS = 10  # around which a further round looks for candidates
PUBLISHED_NUMBER = 8  # babaiee2025quest

Measure = Callable[[KeySet], NDArray[np.floating]]
Dropped = tuple[Elimination, pd.DataFrame]


def discover_keys(
    bank: FilterBank,
    *,
    size: int | None = None,
    keys: int | None = None,
    count: int = 50,
    kinds: Sequence[str] = ("code",),
    rounds: int = 2,
    balance: bool = False,
    criterion: str = "variance",
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    folder: str | os.PathLike[str] | None = None,
    nulls: Sequence[str] = tuple(NULLS),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Discovery:
    """Discover the few keys of which most filters of a bank are made (babaiee2025quest).

    Candidates are dropped one by one, always the one that is missed least. Further
    rounds start from candidates around the last survivors. What is missed least, `criterion` says:

    - ``"variance"``: what lowers the explained variance of the bank least.
    - ``"outputs"``: what lowers least the share that is kept of the variance of what each filter of
      a network gives, see `keyfilters.discovery.gains.OutputGains`.
    - ``"agreement"``, ``"accuracy"``: what changes a network's answers least, or costs least
      accuracy, see `keyfilters.discovery.functional.eliminate_by_answers`.

    With the first two the keys are in the end exchanged for other candidates of the last round as
    long as that explains more. Chance is the same search on null filters, see
    `keyfilters.null_bank`.

    Args:
        bank: filters of any number of models, which the candidates are made from. Every filter
            counts alike, whatever its norm; those without a shape are left out.
        size: kernel size k of the filters to look at; needed where the bank has several.
        keys: how many to keep; None takes the number that the filters ask for, see
            `keyfilters.discovery.number.number_of_keys`, at most `count`; or eight, the published
            number, where none stands out, which `Discovery.number` says.
        count: candidates of a round.
        kinds: where the first candidates come from, see `keyfilters.discovery.candidates`.
        rounds: 1, or more for resampling around survivors.
        balance: whether every model counts alike instead, however many filters it has; for
            ``"variance"``.
        criterion: as above.
        model: the network to ask, for all criteria but ``"variance"``.
        images: ``(n, channels, height, width)`` as it takes them.
        labels: ``(n,)`` integers, for ``"accuracy"``.
        folder: where ``"agreement"`` and ``"accuracy"`` note their drops; the same search, if it
            was cut off, goes on from there.
        nulls: kinds of null filters on which the search is repeated, see `keyfilters.null_bank`.
        seed: of everything random.
        progress: called with the name of every step.

    Raises:
        KeyFiltersError: several kernel sizes and none chosen, too few filters for the candidates,
            more keys than candidates, unknown kinds or criterion, or one that needs a model, images
            or labels without them; before any work starts.

    >>> from keyfilters.bank import Layer
    >>> planted = KeySet.random(4, size=5).filters.astype(np.float32).repeat(40, 0)
    >>> bank = FilterBank([Layer("net", "conv", planted, None, None, 0.0)])
    >>> len(discover_keys(bank, kinds=["lines", "idealized"], count=16).keys)
    4
    """
    tell = progress or (lambda name: None)
    size = _size(bank, size)
    _check(keys, count, rounds, criterion, {"model": model, "images": images, "labels": labels})
    filters, table = bank.stack(size)
    table = table.assign(row=np.arange(len(table)))[table["flaw"] == ""]
    unit = centred_unit(filters[table["row"].to_numpy()])
    check_kinds(kinds, count, len(unit))
    number = None
    if keys is None:
        tell("number of keys")
        number = number_of_keys(unit, size, halves(table), seed=seed)
    wanted = keys or min(count, (number and number.number) or PUBLISHED_NUMBER)
    weight = weights(table["model"], balance)
    outputs = None
    if criterion == "outputs":
        assert model is not None and images is not None
        tell("what the filters give")
        outputs = OutputGains(model, size, Settings(images, seed=seed))

    def by_gains(pool: KeySet, gains: NDArray[np.floating], place: int) -> Dropped:
        eliminated = eliminate(gains)
        return eliminated, curve_of(place, pool, eliminated.order, gains)

    def by_answers(pool: KeySet, gains: NDArray[np.floating], place: int) -> Dropped:
        assert model is not None and images is not None
        asked = labels if criterion == "accuracy" else None
        eliminated, answers = eliminate_by_answers(
            model, pool, images, asked, folder=folder, progress=progress
        )
        return eliminated, curve_of(place, pool, eliminated.order, gains).merge(answers, on="keys")

    search = partial(
        _search, size=size, count=count, kinds=kinds, rounds=rounds, wanted=wanted, seed=seed
    )
    asks = criterion in ("agreement", "accuracy")
    measure = _by_variance(unit, weight) if outputs is None else _by_outputs(outputs)
    found = search(
        unit,
        fewest=keys or 1,
        measure=measure,
        drop=by_answers if asks else by_gains,
        exchanges=not asks,
        tell=tell,
    )
    on_null = _search_nulls(
        nulls, unit, size, weight, outputs, partial(search, drop=by_gains), seed, tell
    )
    curve = found.curve
    for kind, by_chance in on_null.items():
        part = by_chance.curve[["round", "keys", "value"]].rename(columns={"value": kind})
        curve = curve.merge(part, on=["round", "keys"], how="left")
    names = ", ".join(bank.models[:4]) + (" and others" if len(bank.models) > 4 else "")
    told = f"discovered in {names}: {len(unit):,} filters, {', '.join(kinds)}, seed {seed}"
    told += "" if criterion == "variance" else f", criterion {criterion}"
    chosen = KeySet.from_filters(found.keys.filters, found.keys.names, provenance=told)
    served = served_by(table, unit, chosen)
    options = {
        "filters": len(unit),
        "size": size,
        "count": count,
        "kinds": list(kinds),
        "rounds": rounds,
        "balance": balance,
        "criterion": criterion,
        "images": 0 if images is None else len(images),
        "seed": seed,
    }
    return Discovery(
        keys=chosen,
        curve=curve,
        pools=found.pools,
        models=models_of(chosen, served, balance),
        served=served,
        null_r2={kind: by_chance.r2 for kind, by_chance in on_null.items()},
        value=found.value,
        nulls={kind: by_chance.value for kind, by_chance in on_null.items()},
        number=number,
        options=options,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    keys: KeySet
    value: float
    r2: NDArray[np.float32]  # of every filter, by its best key
    pools: list[KeySet]
    curve: pd.DataFrame


def _search(
    unit: NDArray[np.float32],
    *,
    measure: Measure,
    drop: Callable[[KeySet, NDArray[np.floating], int], Dropped],
    size: int,
    count: int,
    kinds: Sequence[str],
    rounds: int,
    wanted: int,
    seed: int,
    fewest: int = 1,
    exchanges: bool = True,
    tell: Callable[[str], None] = lambda name: None,
) -> _Found:
    """Candidates, elimination, further rounds around survivors, exchange: of filters or a null."""
    tell("candidates")
    pool = candidates(unit, size, count, kinds=kinds, seed=seed)
    if len(pool) < fewest:
        raise KeyFiltersError(f"only {len(pool)} candidates differ; {fewest} keys were asked for")
    pools, curves = [], []
    for place in range(1, rounds + 1):
        tell(f"elimination, round {place}")
        gains = measure(pool)
        eliminated, curve = drop(pool, gains, place)
        pools.append(pool)
        curves.append(curve)
        if place < rounds:
            survivors = pool[eliminated.survivors(max(SURVIVORS, wanted + 2))]
            stream = child_integer(seed, "round", place)
            pool = resampled(unit, survivors, count, seed=stream)
    kept = eliminated.survivors(wanted)
    if exchanges:
        tell("exchange")
        kept = exchange(gains, kept)
    keys = pools[-1][kept]
    return _Found(
        keys=keys,
        value=_value(gains, kept),
        r2=explained(unit, keys).max(1),
        pools=pools,
        curve=pd.concat(curves, ignore_index=True),
    )


def _search_nulls(
    kinds: Sequence[str],
    unit: NDArray[np.float32],
    size: int,
    weight: NDArray[np.float32],
    outputs: OutputGains | None,
    search: Callable[..., _Found],
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, _Found]:
    """Repeat the search on null filters, or on the network with null filters."""
    found = {}
    for kind in kinds:
        tell(f"the same search on the {kind} null")
        stream = child_seed(seed, "discovery")
        drawn = null_units(unit, (size, size), kind, stream)
        measure = (
            _by_variance(drawn, weight)
            if outputs is None
            else _by_outputs(outputs.on_null(kind, stream))
        )
        found[kind] = search(drawn, measure=measure)
    return found


def _value(gains: NDArray[np.floating], kept: NDArray[np.integer]) -> float:
    return float(gains[:, kept].max(1).sum(dtype=np.float64))


def _check(
    keys: int | None, count: int, rounds: int, criterion: str, given: dict[str, object]
) -> None:
    if rounds < 1:
        raise KeyFiltersError(f"rounds must be at least 1, got {rounds}")
    if keys is not None and not 1 <= keys <= count:
        raise KeyFiltersError(f"cannot keep {keys} keys of {count} candidates")
    if criterion not in CRITERIA:
        raise KeyFiltersError(
            f"criterion is {criterion!r}; there are: {', '.join(CRITERIA)}"
            + nearest(criterion, CRITERIA)
        )
    if any(given[name] is None for name in CRITERIA[criterion]):
        needs = " and ".join(f"{name}=" for name in CRITERIA[criterion])
        raise KeyFiltersError(f"the criterion {criterion!r} needs {needs}")


def _by_variance(unit: NDArray[np.float32], weight: NDArray[np.float32]) -> Measure:
    return lambda keys: explained(unit, keys) * weight


def _by_outputs(gains: OutputGains) -> Measure:
    def measure(keys: KeySet) -> NDArray[np.float64]:
        found = gains(keys)
        return found / len(found)

    return measure


def _size(bank: FilterBank, size: int | None) -> int:
    square = [k_y for k_y, k_x in bank.sizes if k_y == k_x]
    if size is None:
        if len(square) != 1:
            have = ", ".join(f"{k}×{k}" for k in square) or "none that are square"
            raise KeyFiltersError(f"keys have one size, but the bank has {have}; type size=K")
        return square[0]
    if size not in square:
        bank.stack(size)  # says which sizes there are
    return size

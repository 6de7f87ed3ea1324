"""Discovering universal keys: candidates, elimination, a second round, exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.bank import FilterBank
from keyfilters.discovery.candidates import candidates, check_kinds, resampled
from keyfilters.discovery.elimination import Elimination, elbow, eliminate, exchange
from keyfilters.discovery.functional import eliminate_by_answers
from keyfilters.discovery.gains import OutputGains, explained
from keyfilters.discovery.result import Discovery, curve_of, models_of, served_by, weights
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit
from keyfilters.surgery.outputs import Settings

__all__ = ["Discovery", "discover_keys"]

CRITERIA = {
    "variance": (),
    "outputs": ("model", "images"),
    "agreement": ("model", "images"),
    "accuracy": ("model", "images", "labels"),
}
SURVIVORS = 10  # around which a further round looks for candidates
CONTROL = 10_000  # added to the seed, so that the control is no candidate

Measure = Callable[[KeySet], NDArray[np.floating]]


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
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Discovery:
    """Discover the few keys of which most filters of a bank are made (babaiee2025quest).

    Candidates are dropped one by one, always the one that is missed least; the elbow of that curve
    says how many keys there are. Further rounds start from candidates around the last survivors.
    What is missed least, `criterion` says:

    - ``"variance"``: what lowers the explained variance of the bank least.
    - ``"outputs"``: what lowers least the share that is kept of the variance of what each filter of
      a network gives, see `keyfilters.discovery.gains.OutputGains`.
    - ``"agreement"``, ``"accuracy"``: what changes a network's answers least, or costs least
      accuracy, see `keyfilters.discovery.functional.eliminate_by_answers`.

    With the first two the keys are in the end exchanged for other candidates of the last round as
    long as that explains more.

    Args:
        bank: filters of any number of models, which the candidates are made from. Every filter
            counts alike, whatever its norm; those without a shape are left out.
        size: kernel size k of the filters to look at; needed where the bank has several.
        keys: how many to keep; None takes the elbow.
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
    tell("what the filters give" if criterion == "outputs" else "candidates")
    measure = _by_variance(unit, weights(table["model"], balance))
    if criterion == "outputs":
        assert model is not None and images is not None
        measure = _by_outputs(OutputGains(model, size, Settings(images, seed=seed)))

    def drop(pool: KeySet) -> tuple[Elimination, pd.DataFrame]:
        gains = measure(pool)
        if criterion in ("variance", "outputs"):
            eliminated = eliminate(gains)
            return eliminated, curve_of(len(pools), pool, eliminated.order, gains)
        assert model is not None and images is not None
        asked = labels if criterion == "accuracy" else None
        eliminated, answers = eliminate_by_answers(
            model, pool, images, asked, folder=folder, progress=progress
        )
        curve = curve_of(len(pools), pool, eliminated.order, gains)
        return eliminated, curve.merge(answers, on="keys")

    pools = [candidates(unit, size, count, kinds=kinds, seed=seed)]
    tell("elimination")
    eliminated, curve = drop(pools[0])
    curves = [curve]
    # Later curves bend where the survivors end, whatever the filters, so only the first one tells.
    bend = elbow(eliminated.values[::-1], count)
    wanted = keys or bend
    for number in range(2, rounds + 1):
        tell(f"round {number}")
        survivors = pools[-1][eliminated.survivors(max(SURVIVORS, wanted + 2))]
        pools.append(resampled(unit, survivors, count, seed=seed + number))
        eliminated, curve = drop(pools[-1])
        curves.append(curve)
    pool = pools[-1]
    if wanted > len(pool):
        raise KeyFiltersError(f"only {len(pool)} candidates differ; {wanted} keys were asked for")
    gains = measure(pool)
    kept = eliminated.survivors(wanted)
    if criterion in ("variance", "outputs"):
        tell("exchange")
        kept = exchange(gains, kept)
    tell("what random candidates give")
    random = KeySet.random(count, size, seed + CONTROL)
    random_gains = measure(random)
    by_chance = eliminate(random_gains)
    curve = pd.concat(curves, ignore_index=True)
    curve.insert(3, "chance", by_chance.values[::-1][curve["keys"] - 1])
    names = ", ".join(bank.models[:4]) + (" and others" if len(bank.models) > 4 else "")
    told = f"discovered in {names}: {len(unit):,} filters, {', '.join(kinds)}, seed {seed}"
    told += "" if criterion == "variance" else f", criterion {criterion}"
    chosen = pool[kept]
    found = KeySet.from_filters(chosen.filters, chosen.names, provenance=told)
    random_kept = exchange(random_gains, by_chance.survivors(min(wanted, len(random))))
    served = served_by(table, unit, found, random[random_kept])
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
    models = models_of(found, served, balance)
    value, chance = _value(gains, kept), _value(random_gains, random_kept)
    return Discovery(found, curve, pools, models, served, value, chance, bend, options)


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

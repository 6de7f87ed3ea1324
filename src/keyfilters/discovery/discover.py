"""Discovering universal keys: candidates, elimination, a second round, exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from keyfilters.bank import FilterBank
from keyfilters.claims import halves
from keyfilters.discovery.candidates import check_kinds
from keyfilters.discovery.criteria import CRITERIA, check_criterion, make_criterion
from keyfilters.discovery.number import number_of_keys
from keyfilters.discovery.result import Discovery, models_of, served_by, weights
from keyfilters.discovery.search import Found, Search
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.nulls import NULLS
from keyfilters.scalespace import centred_unit
from keyfilters.sizes import Size, Window, as_size, as_window, extent

__all__ = ["Discovery", "discover_keys"]

PUBLISHED_NUMBER = 8  # babaiee2025quest


def discover_keys(
    bank: FilterBank,
    *,
    size: Size | None = None,
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
    rounds start from candidates around the last survivors. `criterion` says what is missed least:

    - ``"variance"``: what lowers the explained variance of the bank least.
    - ``"outputs"``: what lowers least the share that is kept of the variance of what each filter of
      a network gives, see `keyfilters.discovery.shares.OutputShares`.
    - ``"agreement"``, ``"accuracy"``: what changes a network's answers least, or costs least
      accuracy, see `keyfilters.discovery.functional.eliminate_by_answers`.

    With the first two the keys are in the end exchanged for other candidates of the last round as
    long as that explains more. Chance is the same search on null filters, see
    `keyfilters.null_bank`.

    Args:
        bank: filters of any number of models, which the candidates are made from. Every filter
            counts alike, whatever its norm; those without a shape are left out.
        size: kernel size of the filters to look at, k or ``(k_y, k_x)``; needed if the bank has
            several, unless just one of them is square.
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
    >>> planted = KeySet.random(4, size=5).filters.repeat(40, 0)
    >>> bank = FilterBank([Layer("net", "conv", planted, None, None, 0.0)])
    >>> len(discover_keys(bank, kinds=["lines", "idealized"], count=16).keys)
    4
    """
    tell = progress or (lambda name: None)
    window = _window(bank, size)
    needs = {"model": model, "images": images, "labels": labels}
    _check(keys, count, rounds, criterion, needs)
    filters, table = bank.stack(window)
    usable = (table["flaw"] == "").to_numpy()
    table, unit = table[usable], centred_unit(filters[usable])
    check_kinds(kinds, count, len(unit))
    number = None
    if keys is None:
        tell("number of keys")
        number = number_of_keys(unit, window, halves(table), seed=seed)
    wanted = keys or min(count, (number and number.number) or PUBLISHED_NUMBER)
    judge = make_criterion(
        criterion, unit, window, weights(table["model"], balance), needs,
        folder=folder, seed=seed, progress=tell,
    )  # fmt: skip
    search = Search(window, count, tuple(kinds), rounds, wanted, seed)
    found = search.run(judge, fewest=keys or 1, tell=tell)
    on_null = search.on_nulls(judge, nulls, tell=tell)
    options: dict[str, object] = {
        "filters": len(unit), "size": as_size(window), "count": count, "kinds": list(kinds),
        "rounds": rounds, "balance": balance, "criterion": criterion,
        "images": 0 if images is None else len(images), "seed": seed,
    }  # fmt: skip
    chosen = _described(found.keys, bank, options)
    served = served_by(table, unit, chosen)
    return Discovery(
        keys=chosen,
        curve=_beside_nulls(found.curve, on_null),
        pools=found.pools,
        models=models_of(chosen, served, balance),
        served=served,
        null_r2={kind: by_chance.r2 for kind, by_chance in on_null.items()},
        value=found.value,
        nulls={kind: by_chance.value for kind, by_chance in on_null.items()},
        number=number,
        options=options,
    )


def _beside_nulls(curve: pd.DataFrame, nulls: dict[str, Found]) -> pd.DataFrame:
    """Add the value of the same search on each null to the curve, one column a null."""
    for kind, found in nulls.items():
        part = found.curve[["round", "keys", "value"]].rename(columns={"value": kind})
        curve = curve.merge(part, on=["round", "keys"], how="left")
    return curve


def _described(keys: KeySet, bank: FilterBank, options: dict[str, object]) -> KeySet:
    """Return the keys with where they come from as provenance."""
    models = ", ".join(bank.models[:4]) + (" and others" if len(bank.models) > 4 else "")
    kinds, criterion = options["kinds"], options["criterion"]
    assert isinstance(kinds, list)
    text = f"discovered in {models}: {options['filters']:,} filters, {', '.join(kinds)}"
    text += f", seed {options['seed']}"
    text += "" if criterion == "variance" else f", criterion {criterion}"
    return KeySet.from_filters(keys.filters, keys.names, provenance=text)


def _check(
    keys: int | None, count: int, rounds: int, criterion: str, given: Mapping[str, object]
) -> None:
    if rounds < 1:
        raise KeyFiltersError(f"rounds must be at least 1, got {rounds}")
    if keys is not None and not 1 <= keys <= count:
        raise KeyFiltersError(f"cannot keep {keys} keys of {count} candidates")
    check_criterion(criterion)
    if any(given[name] is None for name in CRITERIA[criterion]):
        needs = " and ".join(f"{name}=" for name in CRITERIA[criterion])
        raise KeyFiltersError(f"the criterion {criterion!r} needs {needs}")


def _window(bank: FilterBank, size: Size | None) -> Window:
    if size is None:
        square = [window for window in bank.sizes if window[0] == window[1]]
        if len(square) == 1:
            return square[0]
        if len(bank.sizes) != 1:
            have = ", ".join(map(extent, bank.sizes)) or "no filters"
            raise KeyFiltersError(
                f"keys have one size, but the bank has {have}; type size=K or size=(K_Y, K_X)"
            )
        return next(iter(bank.sizes))
    window = as_window(size)
    if window not in bank.sizes:
        bank.stack(window)  # says which sizes there are
    return window

"""A recipe that also says what is done to the depthwise filters before training.

    [filters]
    keys = "lindeberg2026-B"
    learn = ["bias"]
    assign_from = "timm:convnextv2_tiny.fcmae_ft_in1k"

Without that section it is a recipe like any other.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.passes import undoing
from keyfilters.query_strings import parse
from keyfilters.receptive_fields import published_in
from keyfilters.sizes import extent
from keyfilters.sources import read
from keyfilters.surgery.freeze import digest_of, freeze_filters_
from keyfilters.surgery.initialize import initialize_filters_
from keyfilters.surgery.parametrize import LEARNABLE, Assignment, parametrize_filters_
from keyfilters.surgery.targets import find_targets
from keyfilters.surgery.transfer import transfer_filters_
from keyfilters.training import Recipe, section

__all__ = ["FilterRecipe", "Filters", "apply_filters_", "check_frozen", "describe"]


@section
class Filters:
    """What is done to the depthwise filters before training; nothing by default.

    Attributes:
        initialize: a scheme of `keyfilters.initialize_filters_` with its options, such as
            ``"center-surround?std=keep"``; the bank of ``"idealized?bank=SOURCE"`` is read.
        transfer: a source for `keyfilters.read`, whose filters are copied and where sizes differ
            fitted (`keyfilters.transfer_filters_`).
        keys: keys on which the filters are kept (`keyfilters.parametrize_filters_`): the name of a
            published set, which is drawn at each kernel size that the model has, or a file.
        learn: what of the keys is learned, any of ``"amplitude"``, ``"bias"`` and ``"sigma"``;
            none freezes the filters on them.
        assignment: ``"trained"`` gives every channel the key, a and b nearest to its filter,
            ``"random"`` a key and sign that are drawn.
        assign_from: a source for `keyfilters.read`, whose filters say key, a and b in place of the
            model's own (lindeberg2026modelling: the fully trained network's, written into the
            self-supervised one); its layers must be the model's.
        unit_norm: whether each kernel on keys is divided by its ℓ2 norm.
        freeze: whether the filters stay as they then are.

    Raises:
        KeyFiltersError: choices that exclude each other.

    >>> Filters(learn=["bias"])
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: filters.learn needs keys; set filters.keys too, ...
    """

    initialize: str = ""
    transfer: str = ""
    keys: str = ""
    learn: tuple[str, ...] = ()
    assignment: Literal["trained", "random"] = "trained"
    assign_from: str = ""
    unit_norm: bool = False
    freeze: bool = False

    def __post_init__(self) -> None:
        for name in self.learn:
            if name not in LEARNABLE:
                tail = nearest(str(name), LEARNABLE)
                expected = f"any of {', '.join(LEARNABLE)} are expected"
                raise KeyFiltersError(f"filters.learn has {name!r}; {expected}{tail}")
        if not self.keys:
            for name in ("learn", "assign_from", "unit_norm"):
                if getattr(self, name):
                    mend = 'set filters.keys too, for example to "lindeberg2026-B"'
                    raise KeyFiltersError(f"filters.{name} needs keys; {mend}")
            if self.assignment != "trained":
                raise KeyFiltersError("filters.assignment is that of keys; set filters.keys too")
        if self.freeze and self.learn:
            got = f"filters.freeze with filters.learn = {list(self.learn)}"
            raise KeyFiltersError(f"{got}; frozen filters learn nothing, so leave one of them out")
        if self.assign_from and self.assignment == "random":
            got = 'filters.assign_from with filters.assignment = "random"'
            raise KeyFiltersError(f"{got}; what is drawn needs no source, so leave one of them out")
        given = [x for x in ("initialize", "transfer", "assign_from") if getattr(self, x)]
        if len(given) > 1:
            got = " and ".join(f"filters.{name}" for name in given)
            raise KeyFiltersError(f"{got} would overwrite each other's filters; give one of them")


@section
class FilterRecipe(Recipe):
    """A recipe with a section ``[filters]``.

    >>> recipe = FilterRecipe.from_dict({"filters": {"keys": "lindeberg2026-B"}})
    >>> recipe.filters.keys, recipe.filters.learn
    ('lindeberg2026-B', ())
    """

    filters: Filters = field(default_factory=Filters)

    def to_dict(self) -> dict[str, Any]:
        """As of `Recipe`, of which it is one where nothing is done to the filters."""
        values = super().to_dict()
        if self.filters == Filters():
            del values["filters"]
        return values


def apply_filters_(model: nn.Module, filters: Filters, seed: int = 0) -> pd.DataFrame | None:
    """Do to the depthwise filters of a model what a recipe says, in place.

    First they are initialised or copied from a source, then put on keys or frozen. Filters on keys
    are plain again after `keyfilters.bake_filters_`.

    Args:
        model: the module that is to be trained.
        filters: what to do.
        seed: of all that is drawn.

    Returns:
        The table of the last thing done, one row a layer; None if there was nothing to do.

    Raises:
        KeyFiltersError: a source or key set that cannot be had or does not fit the model.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    >>> table = apply_filters_(net, Filters(keys="lindeberg2026-B", learn=["bias"]))
    >>> table[["layer", "parameters"]].values.tolist()
    [['0', 8]]
    """
    with undoing(model):
        return _apply_(model, filters, seed)


def _apply_(model: nn.Module, filters: Filters, seed: int) -> pd.DataFrame | None:
    table: pd.DataFrame | None = None
    if filters.initialize:
        table = _initialize_(model, filters.initialize, seed)
    if filters.transfer:
        table = transfer_filters_(model, read(filters.transfer), seed=seed)
    if filters.assign_from:
        _borrow_(model, filters)
    if filters.keys:
        return _keep_on_keys_(model, filters, seed)
    if filters.freeze:
        return freeze_filters_(model).table
    return table


def check_frozen(model: nn.Module, table: pd.DataFrame | None) -> None:
    """Raise if filters that `apply_filters_` froze as they were have moved in a single bit.

    Args:
        model: after training.
        table: what `apply_filters_` returned; anything but that of frozen filters passes.

    Raises:
        KeyFiltersError: names the layers that moved.
    """
    if table is None or "sha256" not in table:
        return
    sites = {site.name: site.weight for site in find_targets(model)[0]}
    moved = [
        row.layer
        for row in table.itertuples()
        if digest_of(sites[str(row.layer)])[: len(str(row.sha256))] != row.sha256
    ]
    if moved:
        raise KeyFiltersError(f"these were frozen, but moved: {', '.join(map(str, moved))}")


def describe(filters: Filters, table: pd.DataFrame | None) -> str:
    """Say in one line what was done.

    Args:
        filters: what was to be done.
        table: what `apply_filters_` returned.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    >>> filters = Filters(keys="lindeberg2026-B")
    >>> describe(filters, apply_filters_(net, filters)).split(";")[0]
    '8 filters in 1 of 1 layers on the keys lindeberg2026-B'
    """
    if table is None:
        return "as the model has them"
    before = {"initialised": filters.initialize, "transferred from": filters.transfer}
    said = [f"{what} {source}" for what, source in before.items() if source]
    if not filters.keys:
        return "; ".join([*said, *["frozen"] * filters.freeze])
    own = table[table["left"] == ""]
    said.append(
        f"{own['filters'].sum():,} filters in {len(own)} of {len(table)} layers "
        f"on the keys {filters.keys}"
    )
    if filters.assignment == "random":
        said.append("assigned at random")
    else:
        kept = (own["explained"] * own["filters"]).sum() / own["filters"].sum()
        whose = filters.assign_from or "the model"
        said.append(f"assigned by {whose}, of whose filters they keep {100 * kept:.1f} %")
    learned = f"{' and '.join(filters.learn)} learned ({own['parameters'].sum():,} numbers)"
    said += [learned if filters.learn else "frozen", *["unit norm"] * filters.unit_norm]
    return "; ".join(said)


def _initialize_(model: nn.Module, asked: str, seed: int) -> pd.DataFrame:
    scheme, options = parse(asked)
    if "keys" in options:
        raise KeyFiltersError(f"filters.initialize = {asked!r}: other keys cannot be named here")
    if isinstance(options.get("gammas"), float):
        options["gammas"] = [options["gammas"]]
    if "bank" in options:
        options["bank"] = read(str(options["bank"]))
    try:
        return initialize_filters_(model, scheme, seed=seed, **options)
    except TypeError as error:  # a text where a number belongs
        message = f"filters.initialize = {asked!r} has a bad value: {error}"
        raise KeyFiltersError(message) from error


def _borrow_(model: nn.Module, filters: Filters) -> None:
    """Write the filters of a source into the layers that get keys, by name or else by order."""
    source = filters.assign_from
    bank, (sites, _) = read(source), find_targets(model)
    if len(bank.models) > 1:
        got = f"filters.assign_from = {source!r} holds {len(bank.models)} models"
        raise KeyFiltersError(f"{got}: {', '.join(bank.models)}; name the file of one of them")
    own = {layer.name: layer for layer in bank.layers}
    alike = all(site.name in own for site in sites)
    layers = [own[site.name] for site in sites] if alike else bank.layers
    there, here = ([(len(x.weight), *x.size) for x in found] for found in (layers, sites))
    if there != here:
        odd = next((pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]), None)
        first = f", first {odd[0]} for {odd[1]}" if odd else ""
        raise KeyFiltersError(
            f"filters.assign_from = {source!r} has {len(there)} layers of other filters than the "
            f"model's {len(here)}{first} (filters, height, width); name the same architecture"
        )
    sizes = {keys.window for keys in _keys(model, filters.keys)}
    pairs = [pair for pair in zip(sites, layers, strict=True) if pair[0].size in sizes]
    for write_ in [site.prepare(layer.weight.copy()) for site, layer in pairs]:
        write_()


def _keep_on_keys_(model: nn.Module, filters: Filters, seed: int) -> pd.DataFrame:
    """Parametrise all layers that the keys fit; return one table, in the model's order."""
    assignment: Assignment = "random" if filters.assignment == "random" else "trained"
    options: dict[str, Any] = {"unit_norm": filters.unit_norm, "assignment": assignment}
    tables = [
        parametrize_filters_(model, keys, filters.learn, seed=seed, **options)
        for keys in _keys(model, filters.keys)
    ]
    first, *others = (table.set_index("layer", drop=False) for table in tables)
    for other in others:
        rows = other.index[other["left"] == ""]
        first.loc[rows] = other.loc[rows]
    return first.reset_index(drop=True)


def _keys(model: nn.Module, named: str) -> list[KeySet]:
    """Return the keys of a file, or a published set at each kernel size of the model."""
    if Path(named).suffix:
        if not Path(named).exists():
            raise KeyFiltersError(f"filters.keys: there is no file {named}")
        return [KeySet.from_file(named)]
    sizes = sorted({site.size for site in find_targets(model)[0]})
    shown = [size for size in sizes if published_in(size)]
    if not shown:
        found = ", ".join(map(extent, sizes)) or "tied or parametrised"
        raise KeyFiltersError(
            "published keys have at least 3 taps a side, or are of a single row or column, but the "
            f"filters are {found}"
        )
    return [KeySet.published(named, size) for size in shown]

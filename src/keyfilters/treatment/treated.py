"""Doing to the filters of a model what a `Treatment` says, and checking afterwards that it held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.passes import undoing
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery.freeze import Frozen, freeze_filters_
from keyfilters.surgery.initialize import initialize_filters_
from keyfilters.surgery.key_choice import named_key_sets
from keyfilters.surgery.parametrize import bake_filters_, learns_scales, parametrize_filters_
from keyfilters.surgery.replace import replace_filters_
from keyfilters.surgery.transfer import transfer_filters_

if TYPE_CHECKING:
    from keyfilters.treatment.treatment import Treatment

__all__ = ["IDEALIZED", "Treated", "initialize_by_name_", "treat_"]

IDEALIZED = "idealized"


@dataclass(frozen=True, eq=False)
class Treated:
    """What `Treatment.apply_` did.

    Attributes:
        treatment: what was to be done.
        table: the report of the last thing done, one row a layer; None if there was nothing to do.
        frozen: the proof of what was frozen as it is, if so.
        constants: all about filters on keys that is not learned, by name.
    """

    treatment: Treatment
    table: pd.DataFrame | None
    frozen: Frozen | None
    constants: dict[str, torch.Tensor]

    def check(self, model: nn.Module) -> None:
        """Raise if filters that were frozen, or the keys they are on, have moved.

        Raises:
            KeyFiltersError: names what moved.
        """
        if self.frozen is not None:
            self.frozen.check(model)
        # By value and not by bit: an average over training turns −0 into 0.
        now = {name: x.cpu() for name, x in _constants(model).items()}
        moved = [n for n, x in self.constants.items() if n in now and not torch.equal(now[n], x)]
        if moved:
            raise KeyFiltersError(f"keys were fixed, but moved: {', '.join(moved)}")

    def finish(self, model: nn.Module) -> None:
        """Check a trained model, and make filters on keys plain weights again.

        Raises:
            KeyFiltersError: as `check`.
        """
        self.check(model)
        if self.treatment.on_keys:
            bake_filters_(model)

    def __str__(self) -> str:
        """What was done, in one line."""
        done, table = self.treatment, self.table
        if table is None:
            return "as the model has them"
        before = {"initialised": done.initialize, "transferred from": done.transfer}
        said = [f"{what} {source}" for what, source in before.items() if source]
        if not done.on_keys:
            own = ["each its own idealised model"] if done.keys else []
            return "; ".join([*said, *own, *["frozen"] * bool(done.freeze or done.keys)])
        own_rows = table[table["left"] == ""]
        count, layers = own_rows["filters"].sum(), len(own_rows)
        said.append(f"{count:,} filters in {layers} of {len(table)} layers on the keys {done.keys}")
        if done.assignment == "random":
            said.append("assigned at random")
        else:
            kept = 100 * (own_rows["explained"] * own_rows["filters"]).sum() / count
            whose = done.assign_from or "the model"
            said.append(f"assigned by {whose}, of whose filters they keep {kept:.1f} %")
        learned = f"{' and '.join(done.learn)} learned ({own_rows['parameters'].sum():,} numbers)"
        said += [learned if done.learn else "frozen", *["unit norm"] * done.unit_norm]
        return "; ".join(said)


def initialize_by_name_(model: nn.Module, text: str, seed: int = 0, **given: Any) -> pd.DataFrame:
    """Initialise the depthwise filters of a model by a line such as ``center-surround?std=keep``.

    Args:
        model: the module.
        text: a scheme of `keyfilters.initialize_filters_`, and its options; ``bank=SOURCE`` is
            read, ``keys=NAME`` is a name of `KeySet.named`.
        seed: of all draws.
        **given: further arguments of `keyfilters.initialize_filters_`.

    Returns:
        Its table.

    Raises:
        KeyFiltersError: as `keyfilters.initialize_filters_`; or a value of the wrong type.
    """
    scheme, options = parse(text)
    if isinstance(options.get("gammas"), float):
        options["gammas"] = [options["gammas"]]
    if "bank" in options:
        options["bank"] = read(str(options["bank"]))
    if "keys" in options:
        options["keys"] = named_key_sets(str(options["keys"]), read(model), seed)
    try:
        return initialize_filters_(model, scheme, seed=seed, **options, **given)
    except TypeError as error:  # a text where a number belongs
        raise KeyFiltersError(f"{text!r} has a bad value: {error}") from error


def treat_(model: nn.Module, treatment: Treatment, seed: int = 0) -> Treated:
    """Do what a treatment says to a model, in place; see `Treatment.apply_`."""
    with undoing(model):
        table, frozen = _apply_(model, treatment, seed)
    constants = {name: x.detach().cpu().clone() for name, x in _constants(model).items()}
    return Treated(treatment, table, frozen, constants)


def _apply_(model: nn.Module, t: Treatment, seed: int) -> tuple[pd.DataFrame | None, Frozen | None]:
    table: pd.DataFrame | None = None
    if t.initialize:
        table = initialize_by_name_(model, t.initialize, seed)
    if t.transfer:
        control = t.control or None
        table = transfer_filters_(model, read(t.transfer), control=control, seed=seed)
    if t.keys == IDEALIZED:
        if t.assign_from:
            _borrow_(model, t.assign_from, set(read(model).sizes))
        replace_filters_(model, "idealized")
    elif t.keys:
        return _keep_on_keys_(model, t, seed), None
    if t.freeze or t.keys:
        frozen = freeze_filters_(model)
        return frozen.table, frozen
    return table, None


def _constants(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all about parametrised weights that is not learned."""
    return {name: x for name, x in model.named_buffers() if "parametrizations." in name}


def _keep_on_keys_(model: nn.Module, t: Treatment, seed: int) -> pd.DataFrame:
    """Parametrise all layers that the keys fit."""
    bank = read(model)
    if t.keys_from:
        bank = FilterBank([x for x in read(t.keys_from).layers if x.size in bank.sizes])
    keys = named_key_sets(t.keys, bank, seed)
    if "sigma" in t.learn:  # the layers of other windows are left alone
        keys = [one for one in keys if learns_scales(one.window)] or keys
    if t.assign_from:
        _borrow_(model, t.assign_from, {k.window for k in keys})
    return parametrize_filters_(
        model, keys, t.learn, unit_norm=t.unit_norm, assignment=t.assignment, seed=seed
    )


def _borrow_(model: nn.Module, source: str, sizes: set[tuple[int, int]]) -> None:
    """Write the filters of another network of this architecture into the layers of some sizes."""
    bank, own = read(source), read(model)
    if len(bank.models) > 1:
        got = f"filters.assign_from = {source!r} holds {len(bank.models)} models"
        raise KeyFiltersError(f"{got}: {', '.join(bank.models)}; name the file of one of them")
    names = {x.name for x in own.layers}
    if names <= {x.name for x in bank.layers}:  # a file of weights may hold what looks like more
        bank = FilterBank([x for x in bank.layers if x.name in names])
    there, here = (sorted((len(x.weight), *x.size) for x in found.layers) for found in (bank, own))
    if there != here:
        odd = next((pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]), None)
        first = f", first {odd[0]} for {odd[1]}" if odd else ""
        raise KeyFiltersError(
            f"filters.assign_from = {source!r} has {len(there)} layers of other filters than the "
            f"model's {len(here)}{first} (filters, height, width); name the same architecture"
        )
    transfer_filters_(model, bank, layers=[x.name for x in own.layers if x.size in sizes])

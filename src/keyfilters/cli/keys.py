"""The keys that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from keyfilters.bank import FilterBank
    from keyfilters.surgery.key_choice import Keys

__all__ = ["KeysOption", "keys_of"]

KeysOption = Annotated[
    str,
    typer.Option(
        help="A published set (lindeberg2026-B, …), a file of filters (.txt, .npy, .npz, "
        ".safetensors), lines:K or kmeans:K learned from the model's own filters of each size, "
        "lines:K/layer of each layer, lines:K/3 of three groups of layers by depth, random:K, or "
        "idealized: each filter's own model."
    ),
]


def keys_of(spec: str, bank: FilterBank, seed: int) -> Keys:
    """Return the keys that `spec` names, for the filters of a bank.

    Raises:
        KeyFiltersError: the name, file or number makes no keys.
    """
    from keyfilters.clusters.keys import learn_keys, learn_keys_by_layer
    from keyfilters.keyset import KeySet
    from keyfilters.receptive_fields import published_in
    from keyfilters.sizes import extent

    if spec == "idealized":
        return "idealized"
    if Path(spec).suffix and Path(spec).exists():
        return KeySet.from_file(spec)
    sizes = list(bank.sizes)
    method, _, number = spec.partition(":")
    if method in ("lines", "kmeans", "random"):
        count, _, grouping = number.partition("/")
        known = grouping in ("", "layer") or (grouping.isdigit() and int(grouping) > 0)
        if not count.isdigit() or int(count) < 1 or not known:
            raise KeyFiltersError(f"--keys {spec}: expected a number of keys, as in {method}:32")
        if method == "random":
            return [KeySet.random(int(count), size, seed) for size in sizes]
        if grouping:
            groups = None if grouping == "layer" else int(grouping)
            return learn_keys_by_layer(bank, int(count), groups=groups, method=method, seed=seed)
        filters = {size: bank.stack(size)[0] for size in sizes}
        return [
            learn_keys(w, min(int(count), len(w)), method=method, seed=seed)
            for w in filters.values()
        ]
    if Path(spec).suffix:
        raise KeyFiltersError(f"there is no file {spec}")
    shown = [size for size in sizes if published_in(size)]
    if sizes and not shown:
        held = ", ".join(map(extent, sizes))
        raise KeyFiltersError(
            f"--keys {spec}: published keys have at least 3 taps a side, or are of a single row or "
            f"column, but the filters are {held}"
        )
    return [KeySet.published(spec, size) for size in shown]

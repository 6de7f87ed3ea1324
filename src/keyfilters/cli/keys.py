"""The keys that a command line names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.errors import KeyFiltersError
from keyfilters.query_strings import whole_number

if TYPE_CHECKING:
    from keyfilters.bank import FilterBank
    from keyfilters.surgery.key_choice import Keys

__all__ = ["KeysOption", "keys_of"]

KeysOption = Annotated[
    str,
    typer.Option(
        help="A published set (lindeberg2026-B, …), consensus, a file of filters (.txt, .npy, "
        ".npz, .safetensors), lines:K or kmeans:K learned from the model's own filters of each "
        "size, lines:K/layer of each layer, lines:K/3 of three groups of layers by depth, "
        "random:K, or idealized: each filter's own model."
    ),
]


def keys_of(spec: str, bank: FilterBank, seed: int) -> Keys:
    """Return the keys that `spec` names, for the filters of a bank.

    Raises:
        KeyFiltersError: the name, file or number makes no keys.
    """
    from keyfilters.clusters.keys import learn_keys_by_layer
    from keyfilters.surgery.key_choice import named_key_sets

    if spec == "idealized":
        return "idealized"
    method, _, number = spec.partition(":")
    if method in ("lines", "kmeans") and "/" in number:
        count, _, grouping = number.partition("/")
        keys, groups = whole_number(count), whole_number(grouping)
        if not keys or not (groups or grouping == "layer"):
            expected = f"expected a number of keys and of groups, as in {method}:32/3"
            raise KeyFiltersError(f"--keys {spec}: {expected}")
        return learn_keys_by_layer(bank, keys, groups=groups, method=method, seed=seed)
    return named_key_sets(spec, bank, seed) if bank.sizes else []

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
        help="A published set (lindeberg2026-B, …), consensus, a file of filters (.txt, .npy, "
        ".npz, .safetensors), lines:K or kmeans:K learned from the model's own filters of each "
        "size, lines:K/layer of each layer, lines:K/3 of three groups of layers by depth, "
        "random:K, or idealized: each filter's own model."
    ),
]


def keys_of(spec: str, bank: FilterBank, seed: int) -> Keys:
    """Return the keys that `spec` names, for the square filters of a bank.

    Raises:
        KeyFiltersError: the name, file or number makes no keys.
    """
    from keyfilters.clusters.keys import learn_keys_by_layer
    from keyfilters.keyset import KeySet

    if spec == "idealized":
        return "idealized"
    if Path(spec).suffix and ":" not in spec:
        return KeySet.from_file(spec)
    method, _, number = spec.partition(":")
    if method in ("lines", "kmeans") and "/" in number:
        count, _, grouping = number.partition("/")
        known = grouping == "layer" or (grouping.isdecimal() and int(grouping) > 0)
        if not count.isdecimal() or int(count) < 1 or not known:
            expected = f"expected a number of keys and of groups, as in {method}:32/3"
            raise KeyFiltersError(f"--keys {spec}: {expected}")
        groups = None if grouping == "layer" else int(grouping)
        return learn_keys_by_layer(bank, int(count), groups=groups, method=method, seed=seed)
    sizes, shape = [k for k, other in bank.sizes if k == other and k > 1], "square"
    if method not in ("lines", "kmeans", "random"):
        sizes, shape = [k for k in sizes if k % 2], "square, of 3×3, 5×5, 7×7, … taps"
    if bank.sizes and not sizes:
        held = ", ".join(f"{y}×{x}" for y, x in bank.sizes)
        raise KeyFiltersError(f"--keys {spec}: keys are {shape}, but the filters are {held}")
    return [KeySet.named(spec, size, seed, bank=bank) for size in sizes]

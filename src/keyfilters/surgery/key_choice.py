"""What each layer of a model may be made of: the keys of one set, or every filter's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.depthwise import extent
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.learned_filters import METHODS
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields import has_models, match, published_in
from keyfilters.receptive_fields.models import render_models
from keyfilters.sizes import as_size
from keyfilters.surgery.targets import Target

__all__ = ["Choice", "Keys", "choose_keys", "named_key_sets", "one_key_set", "published_hint"]

Keys = KeySet | Sequence[KeySet] | Mapping[str, KeySet] | Literal["idealized"]

# Keys from which all filters of a layer choose, or one shape (C, k_y, k_x) for each filter.
Choice = KeySet | NDArray[np.float64]


def choose_keys(targets: Sequence[Target], keys: Keys, left: list[Target]) -> dict[str, Choice]:
    """Return what each layer may be made of, by name; layers without keys join `left`.

    Raises:
        KeyFiltersError: keys of another type or of no size that the layers have.
    """
    choices: dict[str, Choice]
    if isinstance(keys, str):
        if keys != "idealized":
            raise KeyFiltersError(f"keys must be a KeySet or 'idealized', got {keys!r}")
        fitting = [t for t in targets if has_models(t.size)]
        choices = {target.name: _own_models(target.filters) for target in fitting}
        reason = "no idealised models for filters of {size}"
    elif isinstance(keys, Mapping):
        _require_sets(keys.values())
        _check_names(keys, targets, left)
        choices = {target.name: keys[target.name] for target in targets if target.name in keys}
        reason = "no keys were given for it"
    else:
        by_size = _sets_by_size(keys)
        have = ", ".join(map(extent, by_size))
        if targets and not any(target.size in by_size for target in targets):
            sizes = ", ".join(sorted({extent(target.size) for target in targets}))
            hint = published_hint(target.size for target in targets)
            raise KeyFiltersError(f"the keys are {have}, but the model's filters are {sizes}{hint}")
        choices = {t.name: by_size[t.size] for t in targets if t.size in by_size}
        reason = f"filters of {{size}}, the keys are {have}"
    for target in targets:
        if target.name not in choices:
            left.append(replace(target, left=reason.format(size=extent(target.size))))
    if not choices:
        why = "; ".join(sorted({target.left for target in left}))
        raise KeyFiltersError(f"nothing would be replaced: {why}")
    return choices


def named_key_sets(name: str, bank: FilterBank, seed: int = 0) -> list[KeySet]:
    """Return the keys of a file, or those of a name at each kernel size of a bank that they have.

    Args:
        name: as `KeySet.named` takes it.
        bank: filters whose kernel sizes count, and from which keys are learned.
        seed: of random and learned keys.

    Raises:
        KeyFiltersError: as `KeySet.named`, or the bank has no filters of the shape of the keys.
    """
    if Path(name).is_file() or (Path(name).suffix and ":" not in name):
        return [KeySet.from_file(name)]
    windows = sorted(bank.sizes)
    if name.partition(":")[0] not in ("random", *METHODS, *NULLS):
        windows = [window for window in windows if published_in(window)]
    if not windows:
        held = ", ".join(map(extent, bank.sizes)) or "none"
        raise KeyFiltersError(
            f"keys {name} have at least 3 taps a side, or are of a single row or column, but the "
            f"filters are {held}"
        )
    found: list[KeySet] = []
    for window in windows:
        try:
            found.append(KeySet.named(name, window, seed, bank=bank))
        except KeyFiltersError:
            if window == windows[-1] and not found:
                raise
    return found


def published_hint(sizes: Iterable[tuple[int, int]]) -> str:
    """Return the tail of a message that names keys of one of the sizes.

    >>> published_hint([(2, 2), (5, 5)])
    "; type for example KeySet.published('lindeberg2026-B', size=5)"
    """
    # Square windows of odd side first, as they are the paper's.
    known = sorted(sizes, key=lambda size: (size[0] != size[1], size[0] % 2 == 0, size))
    shown = next((size for size in known if published_in(size)), None)
    if shown is not None:
        return f"; type for example KeySet.published('lindeberg2026-B', size={as_size(shown)})"
    made = f"KeySet.random(8, size={as_size(known[0])})"
    return f"; type for example {made} or KeySet.from_filters(filters)"


def one_key_set(keys: KeySet | Sequence[KeySet]) -> KeySet:
    """Return a key set, or that of a list of one.

    Raises:
        KeyFiltersError: anything else, or several key sets.
    """
    by_size = _sets_by_size(keys)
    if len(by_size) > 1:
        raise KeyFiltersError(
            f"expected one key set, got those of {', '.join(map(extent, by_size))}; call this once "
            "for each, with layers= for the layers of that size"
        )
    return next(iter(by_size.values()))


def _sets_by_size(keys: KeySet | Sequence[KeySet]) -> dict[tuple[int, int], KeySet]:
    if isinstance(keys, KeySet):
        keys = [keys]
    if not isinstance(keys, (list, tuple)):
        _require_sets([keys])
    if not keys:
        raise KeyFiltersError(f"expected at least one key set, got an empty {type(keys).__name__}")
    _require_sets(keys)
    by_size: dict[tuple[int, int], KeySet] = {}
    for one in keys:
        size = one.window
        if size in by_size:
            raise KeyFiltersError(
                f"two key sets of one size, {extent(size)}; give one set a size, or one for "
                "each layer by name: {layer: keys}"
            )
        by_size[size] = one
    return by_size


def _require_sets(given: Iterable[object]) -> None:
    for one in given:
        if not isinstance(one, KeySet):
            raise KeyFiltersError(
                f"expected a KeySet or a list of them, one a size, got a {type(one).__name__}; "
                "type for example KeySet.from_filters(filters)"
            )


def _check_names(
    keys: Mapping[str, KeySet], targets: Sequence[Target], left: Sequence[Target]
) -> None:
    sizes = {target.name: target.size for target in targets}
    reasons = {target.name: target.left for target in left}
    for name, given in keys.items():
        if name not in sizes:
            reason = f": {reasons[name]}" if name in reasons else nearest(name, sizes)
            raise KeyFiltersError(f"no depthwise layer is called {name!r}{reason}")
        if sizes[name] != given.window:
            raise KeyFiltersError(
                f"the keys for {name} are {extent(given.window)}, its filters {extent(sizes[name])}"
            )


def _own_models(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the idealised model of every filter, centred, of unit norm, ``(C, k_y, k_x)``.

    A filter without a shape has the model 0, which leaves its mean.
    """
    models = render_models(match(filters, null=None), filters.shape[1:])
    models = np.where(np.isnan(models), 0.0, models)
    models -= models.mean((1, 2), keepdims=True)
    norm = np.linalg.norm(models, axis=(1, 2), keepdims=True)
    return models / np.where(norm > 0, norm, 1.0)

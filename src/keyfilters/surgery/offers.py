"""What each layer of a model may be made of: the keys of one set, or every filter's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.models import render_models
from keyfilters.surgery.sites import Site

__all__ = ["Keys", "Offer", "offer_keys", "one_key_set", "sets_by_size"]

Keys = KeySet | Sequence[KeySet] | Mapping[str, KeySet] | Literal["idealized"]

# Keys from which all filters of a layer choose, or one shape (C, k_y, k_x) for each filter.
Offer = KeySet | NDArray[np.float64]


def offer_keys(sites: Sequence[Site], keys: Keys, left: dict[str, str]) -> dict[str, Offer]:
    """Say what each layer may be made of; the reasons for the others are noted in `left`."""
    offered: dict[str, Offer]
    if isinstance(keys, str):
        if keys != "idealized":
            raise KeyFiltersError(f"keys must be a KeySet or 'idealized', got {keys!r}")
        fitting = [s for s in sites if min(s.size) >= 3 and s.size[0] % 2 and s.size[1] % 2]
        offered = {site.name: _own_models(site.filters) for site in fitting}
        reason = "no idealised models for filters of {size}"
    elif isinstance(keys, Mapping):
        _require_sets(keys.values())
        _check_names(keys, sites, left)
        offered = {site.name: keys[site.name] for site in sites if site.name in keys}
        reason = "no keys were given for it"
    else:
        by_size = sets_by_size(keys)
        have = ", ".join(f"{k}×{k}" for k, _ in by_size)
        if sites and not any(site.size in by_size for site in sites):
            sizes = ", ".join(sorted({site.extent for site in sites}))
            raise KeyFiltersError(
                f"the keys are {have}, but the model's filters are {sizes}; type for example "
                f"KeySet.published('lindeberg2026-B', size={sites[0].size[0]})"
            )
        offered = {site.name: by_size[site.size] for site in sites if site.size in by_size}
        reason = f"filters of {{size}}, the keys are {have}"
    for site in sites:
        if site.name not in offered:
            left[site.name] = reason.format(size=site.extent)
    if not offered:
        raise KeyFiltersError(f"nothing would be replaced: {'; '.join(sorted(set(left.values())))}")
    return offered


def one_key_set(keys: KeySet | Sequence[KeySet]) -> KeySet:
    """Return a key set, or that of a list of one.

    Raises:
        KeyFiltersError: anything else, or several key sets.
    """
    by_size = sets_by_size(keys)
    if len(by_size) > 1:
        sizes = ", ".join(f"{y}×{x}" for y, x in by_size)
        raise KeyFiltersError(
            f"expected one key set, got those of {sizes}; call this once for each, with layers= "
            "for the layers of that size"
        )
    return next(iter(by_size.values()))


def sets_by_size(keys: KeySet | Sequence[KeySet]) -> dict[tuple[int, int], KeySet]:
    """Return key sets by the size ``(k, k)`` of their keys.

    Args:
        keys: a key set, or several of different sizes.

    Raises:
        KeyFiltersError: something else, no set, or two sets of one size.

    >>> list(sets_by_size([KeySet.random(4, size=k) for k in (3, 5)]))
    [(3, 3), (5, 5)]
    """
    if isinstance(keys, KeySet):
        keys = [keys]
    if not isinstance(keys, (list, tuple)):
        _require_sets([keys])
    if not keys:
        raise KeyFiltersError(f"expected at least one key set, got an empty {type(keys).__name__}")
    _require_sets(keys)
    by_size = {(k.size, k.size): k for k in keys}
    if len(by_size) < len(keys):
        sizes = [k.size for k in keys]
        double = next(size for size in sizes if sizes.count(size) > 1)
        raise KeyFiltersError(
            f"two key sets of one size, {double}×{double}; give one set a size, or one for each "
            "layer by name: {layer: keys}"
        )
    return by_size


def _require_sets(given: Iterable[object]) -> None:
    for one in given:
        if not isinstance(one, KeySet):
            raise KeyFiltersError(
                f"expected a KeySet or a list of them, one a size, got a {type(one).__name__}; "
                "type for example KeySet.from_filters(filters)"
            )


def _check_names(keys: Mapping[str, KeySet], sites: Sequence[Site], left: dict[str, str]) -> None:
    by_name = {site.name: site for site in sites}
    for name, given in keys.items():
        if name not in by_name:
            reason = f": {left[name]}" if name in left else nearest(name, by_name)
            raise KeyFiltersError(f"no depthwise layer is called {name!r}{reason}")
        if by_name[name].size != (given.size, given.size):
            raise KeyFiltersError(
                f"the keys for {name} are {given.size}×{given.size}, its filters "
                f"{by_name[name].extent}"
            )


def _own_models(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """The idealised model of every filter, centred and of unit norm, ``(C, k_y, k_x)``.

    A filter without a shape has the model 0, which leaves its mean.
    """
    models = render_models(match(filters, null=None), filters.shape[1:])
    models = np.where(np.isnan(models), 0.0, models)
    models -= models.mean((1, 2), keepdims=True)
    norm = np.linalg.norm(models, axis=(1, 2), keepdims=True)
    return models / np.where(norm > 0, norm, 1.0)

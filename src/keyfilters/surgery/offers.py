"""What each layer of a model may be made of: the keys of one set, or every filter's own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import match
from keyfilters.receptive_fields.models import render_models
from keyfilters.surgery.sites import Site

__all__ = ["Keys", "Offer", "offer_keys"]

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
        _check_names(keys, sites, left)
        offered = {site.name: keys[site.name] for site in sites if site.name in keys}
        reason = "no keys were given for it"
    else:
        sets = [keys] if isinstance(keys, KeySet) else list(keys)
        by_size = {(k.size, k.size): k for k in sets}
        if len(by_size) < len(sets):
            raise KeyFiltersError("two key sets of one size; give one for each layer, by name")
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

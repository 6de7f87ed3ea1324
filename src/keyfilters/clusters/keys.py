"""Learning keys from filters: lines through the origin that pass near many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.learned_filters import METHODS, RESTARTS, learn_filters
from keyfilters.scalespace import DEAD_BELOW, why_unusable
from keyfilters.threads import one_thread

__all__ = ["learn_keys", "learn_keys_by_layer"]


@one_thread()
def learn_keys(
    filters: NDArray[np.floating],
    count: int,
    *,
    method: str = "lines",
    seed: int = 0,
    restarts: int = RESTARTS,
) -> KeySet:
    """Learn the keys of which filters are best made.

    ``"lines"`` minimises the mean of ``1 − cos²``, the share of a filter's variance over the taps
    that ``a x + b`` leaves over: filters join the line nearest to them, whatever their sign, and a
    line becomes the first principal axis of its filters, in turn until nothing moves; the best of
    several starts is kept. ``"kmeans"`` is k-means on the sphere, the usual way, which spends two
    centres on a filter and its negative.

    Args:
        filters: ``(n, k_y, k_x)``; those without a shape are left out.
        count: number of keys.
        method: ``"lines"`` or ``"kmeans"``.
        seed: of the starts.
        restarts: number of starts of lines, of which the best is kept.

    Returns:
        At most `count` keys.

    Raises:
        KeyFiltersError: fewer filters than keys, or an unknown method.

    >>> tilted = np.outer([1, -1, 2, -2], np.arange(9)).reshape(4, 3, 3)
    >>> len(learn_keys(tilted, 1))
    1
    """
    if method not in METHODS:
        raise KeyFiltersError(f"method must be 'lines' or 'kmeans', got {method!r}")
    flaws = why_unusable(np.asarray(filters))
    usable = filters[flaws == ""]
    if not 1 <= count <= len(usable):
        left = ", ".join(f"{n} are {why}" for why, n in Counter(flaws[flaws != ""]).items())
        dead = f" (dead: no tap above {DEAD_BELOW:g})" if "dead" in flaws else ""
        got = f"cannot learn {count} keys from {len(usable)} filters with a shape"
        raise KeyFiltersError(f"{got}; {left}{dead}" if left else got)
    found = learn_filters(usable, count, method, seed, restarts)
    told = f"{len(found)} keys by {method} from {len(usable):,} filters, seed {seed}"
    return KeySet.from_filters(found, provenance=told)


def learn_keys_by_layer(
    bank: FilterBank,
    count: int,
    *,
    groups: int | None = None,
    method: str = "lines",
    seed: int = 0,
) -> dict[str, KeySet]:
    """Learn keys for each layer by itself, or for layers of a kernel size at similar depth.

    Args:
        bank: the filters of one network.
        count: number of keys of a layer or group; as many as it has filters, if fewer.
        groups: into how many groups the layers are divided by relative depth; None learns for
            every layer.
        method: as for `learn_keys`.
        seed: as for `learn_keys`.

    Returns:
        The key set of every layer, by its name.

    Raises:
        KeyFiltersError: the bank holds several networks, or none that has filters with a shape.
    """
    if len(bank.models) > 1:
        raise KeyFiltersError(f"expected one network, got {', '.join(bank.models)}")
    if groups is not None and groups < 1:
        raise KeyFiltersError(f"groups must be at least 1, got {groups}")
    members: dict[Hashable, list[Layer]] = {}
    for layer in bank.layers:
        usable = (why_unusable(layer.weight) == "").any()
        if usable:
            place = layer.name if groups is None else min(int(layer.depth * groups), groups - 1)
            members.setdefault((layer.size, place), []).append(layer)
    if not members:
        raise KeyFiltersError("there are no filters with a shape to learn keys from")
    sets: dict[str, KeySet] = {}
    for layers in members.values():
        filters = np.concatenate([layer.weight for layer in layers])
        usable = filters[why_unusable(filters) == ""]
        keys = learn_keys(usable, min(count, len(usable)), method=method, seed=seed)
        sets |= {layer.name: keys for layer in layers}
    return sets

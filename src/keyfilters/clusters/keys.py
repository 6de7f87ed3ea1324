"""Learning keys from filters: lines through the origin that pass near many of them."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.clusters.prototypes import kmeans_prototypes
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.threads import one_thread

__all__ = ["learn_keys", "learn_keys_by_layer"]

ROUNDS = 100
RESTARTS = 4


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
    if method not in ("lines", "kmeans"):
        raise KeyFiltersError(f"method must be 'lines' or 'kmeans', got {method!r}")
    usable = filters[why_unusable(np.asarray(filters)) == ""]
    if not 1 <= count <= len(usable):
        raise KeyFiltersError(f"cannot learn {count} keys from {len(usable)} filters with a shape")
    unit = centred_unit(usable)
    if method == "kmeans":
        found = kmeans_prototypes(unit, count, seed)
    else:
        tries = [_lines(unit, count, seed, restart) for restart in range(restarts)]
        found = max(tries, key=lambda x: float((np.abs(unit @ x.T).max(1) ** 2).mean()))
    told = f"{len(found)} keys by {method} from {len(usable):,} filters, seed {seed}"
    return KeySet.from_filters(found.reshape(-1, *usable.shape[1:]), provenance=told)


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


def _lines(unit: NDArray[np.float32], count: int, seed: int, restart: int) -> NDArray[np.float32]:
    generator = np.random.default_rng([seed, restart])
    lines = unit[_spread_out(unit, count, generator)]
    index = np.full(len(unit), -1)
    for _ in range(ROUNDS):
        cosine = np.abs(unit @ lines.T)
        nearest = cosine.argmax(1)
        if np.array_equal(nearest, index):
            break
        index = nearest
        worst = np.argsort(cosine.max(1))
        for k in range(count):
            members = unit[index == k].astype(np.float64)
            if len(members):
                lines[k] = np.linalg.eigh(members.T @ members)[1][:, -1]
            else:  # a line that nobody joins starts anew at a filter that is ill served
                lines[k] = unit[worst[k]]
    return lines


def _spread_out(
    unit: NDArray[np.float32], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw filters one after another, with probability the share that those drawn leave over."""
    chosen = [int(generator.integers(len(unit)))]
    left = np.ones(len(unit))
    while len(chosen) < count:
        left = np.minimum(left, 1 - (unit @ unit[chosen[-1]]) ** 2).clip(0)
        total = left.sum()
        chance = left / total if total > 0 else None
        chosen.append(int(generator.choice(len(unit), p=chance)))
    return np.array(chosen)

"""Filters that may become keys: where to look for them, and keeping those that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from keyfilters.clusters.keys import learn_keys
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.discovery.elimination import select
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields.dictionary import build_dictionary, first_of_equals
from keyfilters.sizes import Size, Window, as_window
from keyfilters.threads import one_thread

__all__ = ["CANDIDATES", "candidates", "check_kinds", "different", "resampled"]

ALIKE = 0.999  # |cosine| from which two candidates are one
SAMPLE = 4000  # filters that are looked at to choose among idealised ones


def candidates(
    unit: NDArray[np.float32],
    size: Size,
    count: int = 50,
    *,
    kinds: Sequence[str] = ("code",),
    seed: int = 0,
) -> KeySet:
    """Gather candidates of one or several kinds, those that are alike up to sign but once.

    - ``"code"``: the decoder of a one-dimensional autoencoder at uniform codes (babaiee2025quest).
    - ``"lines"``, ``"kmeans"``: prototypes, see `keyfilters.clusters.keys.learn_keys`.
    - ``"idealized"``: those of a dictionary of discrete Gaussian derivatives on a grid of scales
      (lindeberg2026modelling) that explain most of the filters, one after another.
    - ``"random"``: Gaussian taps, the control.

    Args:
        unit: ``(n, taps)`` centred filters of unit norm.
        size: taps k along either side, or ``(k_y, k_x)``.
        count: candidates of all kinds together, in equal shares; a few less where some are alike.
        kinds: names of the above.
        seed: of everything random.

    Raises:
        KeyFiltersError: an unknown kind, or fewer filters than candidates.
    """
    window = as_window(size)
    check_kinds(kinds, count, len(unit))
    shares = [count // len(kinds) + (i < count % len(kinds)) for i in range(len(kinds))]
    found, names = [], []
    for kind, share in zip(kinds, shares, strict=True):
        made = CANDIDATES[kind](unit, window, share, seed)
        found.append(made)
        names += [f"{kind} {i}" for i in range(1, len(made) + 1)]
    filters = np.concatenate(found)
    kept = different(filters)
    told = f"{len(kept)} candidates: {', '.join(kinds)}, seed {seed}"
    return KeySet.from_filters(
        filters[kept].reshape(-1, *window), [names[i] for i in kept], provenance=told
    )


def check_kinds(kinds: Sequence[str], count: int, filters: int) -> None:
    """Refuse what `candidates` refuses, before any work.

    Raises:
        KeyFiltersError: an unknown kind, or fewer filters than candidates.
    """
    for kind in kinds:
        if kind not in CANDIDATES:
            known = nearest(kind, CANDIDATES) or f"; there are: {', '.join(CANDIDATES)}"
            raise KeyFiltersError(f"no candidates are called {kind!r}{known}")
    if not kinds or count < len(kinds):
        raise KeyFiltersError(f"cannot make {count} candidates of {len(kinds)} kinds")
    if filters < count:
        raise KeyFiltersError(f"{filters} filters are too few to choose from {count} candidates")


def resampled(unit: NDArray[np.float32], keys: KeySet, count: int = 50, *, seed: int = 0) -> KeySet:
    """Gather new candidates around keys: the keys, and what lies near them among the filters.

    For each key, of the filters that it serves: their first principal axis, and the axes of random
    quarters of them.

    Args:
        unit: ``(n, taps)`` centred filters of unit norm.
        keys: survivors of an elimination; they are among the candidates.
        count: candidates at most; those dropped last come first where there is no room for all.
        seed: of the quarters.
    """
    generator = np.random.default_rng(seed)
    flat = keys.filters.reshape(len(keys), -1).astype(np.float32)
    served = np.abs(unit @ flat.T).argmax(1)
    found, names = [*flat], list(keys.names)
    room = max(0, count - len(keys))
    each = room // len(keys)
    for k in range(len(keys)):
        members = unit[served == k]
        for i in range((each or int(k < room)) if len(members) > 1 else 0):
            part = members
            if i:
                part = members[generator.permutation(len(members))[: max(2, len(members) // 4)]]
            found.append(np.linalg.eigh(part.T @ part)[1][:, -1])
            names.append(f"near {keys.names[k]} ({i + 1})")
    filters = np.stack(found)
    kept = different(filters)
    told = f"{len(kept)} candidates around {len(keys)} keys, seed {seed}"
    return KeySet.from_filters(
        filters[kept].reshape(-1, *keys.window), [names[i] for i in kept], provenance=told
    )


def different(filters: NDArray[np.floating], alike: float = ALIKE) -> NDArray[np.int64]:
    """Return the filters, by number, that no earlier one equals up to a · x + b.

    Args:
        filters: ``(N, taps)``.
        alike: absolute cosine of the centred filters from which two are one.

    >>> different(np.array([[1.0, 2, 3], [9, 8, 7], [0, 1, 0]])).tolist()
    [0, 2]
    """
    centred = filters - filters.mean(1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-30)
    return first_of_equals(unit, alike)


def _code(unit: NDArray[np.float32], size: Window, count: int, seed: int) -> NDArray[np.float64]:
    decoded = PrincipalCurve(seed=seed).fit(unit).decoded_
    # In the middle of `count` equal parts of [0, 1].
    where = ((np.arange(count) + 0.5) / count * len(decoded)).astype(int)
    return decoded[where].astype(np.float64)


def _prototypes(method: str) -> Callable[..., NDArray[np.float64]]:
    def make(unit: NDArray[np.float32], size: Window, count: int, seed: int) -> NDArray[np.float64]:
        found = learn_keys(unit.reshape(-1, *size), count, method=method, seed=seed).filters
        return found.reshape(len(found), -1)

    return make


@one_thread()
def _idealised(
    unit: NDArray[np.float32], size: Window, count: int, seed: int
) -> NDArray[np.float64]:
    atoms = build_dictionary(size).atoms.reshape(-1, unit.shape[1])
    some = np.random.default_rng(seed).permutation(len(unit))[:SAMPLE]
    atoms = atoms[different(atoms, alike=0.99)]
    chosen = select((unit[some] @ atoms.T) ** 2, min(count, len(atoms)))
    return atoms[chosen].astype(np.float64)


def _random(unit: NDArray[np.float32], size: Window, count: int, seed: int) -> NDArray[np.float64]:
    return KeySet.random(count, size, seed).filters.reshape(count, -1)


CANDIDATES: dict[str, Callable[..., NDArray[np.float64]]] = {
    "code": _code,
    "lines": _prototypes("lines"),
    "kmeans": _prototypes("kmeans"),
    "idealized": _idealised,
    "random": _random,
}

"""Random streams: one seed, and a child of it for every purpose."""

from __future__ import annotations

from zlib import crc32

from numpy.random import SeedSequence

from keyfilters.errors import KeyFiltersError

__all__ = ["LARGEST_SEED", "checked_seed", "child_integer", "child_seed"]


LARGEST_SEED = 2**63 - 1  # that PyTorch takes as well


def checked_seed(seed: int) -> int:
    """Return a seed, which may not be negative or above `LARGEST_SEED`.

    Raises:
        KeyFiltersError: it is.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise KeyFiltersError(f"seed must be between 0 and {LARGEST_SEED}, got {seed}")
    return seed


def child_seed(seed: int | SeedSequence, *purpose: int | str) -> SeedSequence:
    """Return the child of a seed that belongs to a purpose.

    Children are made as `numpy.random.SeedSequence.spawn` makes them, with the purpose in place of
    a counter: streams of different purposes or seeds are independent, and a new purpose changes
    no other stream.

    Args:
        seed: an integer or a seed sequence.
        purpose: names or numbers, such as ``"null", "covariance"``.

    >>> child_seed(0, "null") == child_seed(0, "null")
    False
    >>> child_integer(0, "null", 5) == child_integer(0, "null", 5)
    True
    >>> child_integer(0, "null", 5) == child_integer(5, "null", 0)
    False
    """
    root = seed if isinstance(seed, SeedSequence) else SeedSequence(checked_seed(seed))
    key = (crc32(str(word).encode()) for word in purpose)
    return SeedSequence(root.entropy, spawn_key=(*root.spawn_key, *key))


def child_integer(seed: int | SeedSequence, *purpose: int | str) -> int:
    """Return the child as an integer below 2³², for functions that take no seed sequence."""
    return int(child_seed(seed, *purpose).generate_state(1)[0])

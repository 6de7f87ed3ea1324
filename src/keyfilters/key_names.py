"""What the name of some keys stands for: on the command line, in recipes, in experiments."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.files import typed_path
from keyfilters.learned_filters import METHODS
from keyfilters.nulls import NULLS
from keyfilters.query_strings import whole_number
from keyfilters.receptive_fields import PUBLISHED

__all__ = ["KeyName", "parse_key_name"]


class KeyName(NamedTuple):
    """A name of keys, taken apart.

    Attributes:
        kind: file, published, consensus, random, a method of `learn_filters`, or a kind of null
            filters.
        label: of published keys, which set.
        number: of random, learned and drawn keys, how many.
    """

    kind: str
    label: str = ""
    number: int = 0


def parse_key_name(name: str) -> KeyName:
    """Take apart a name as `keyfilters.keyset.KeySet.named` takes it.

    Raises:
        KeyFiltersError: no such keys.

    >>> parse_key_name("lines:32")
    KeyName(kind='lines', label='', number=32)
    """
    kind, colon, rest = name.partition(":")
    if Path(name).suffix and (not colon or typed_path(name).is_file()):
        return KeyName("file")
    if name == "consensus":
        return KeyName("consensus")
    if kind == "random" or (kind in (*METHODS, *NULLS) and colon):
        number = whole_number(rest) if colon else 8
        if not number:
            raise KeyFiltersError(f"{name!r}: a number of keys is expected, as in {kind}:32")
        return KeyName(kind, number=number)
    label = rest if kind == "published" else name
    if label not in (*PUBLISHED, *(x.removeprefix("lindeberg2026-") for x in PUBLISHED)):
        known = (*PUBLISHED, "consensus", "idealized", "random:8", "lines:32", "kmeans:32")
        raise KeyFiltersError(
            f"no keys are called {name!r}; one of {', '.join(known)}, or a file, is expected"
            f"{nearest(label, known)}"
        )
    return KeyName("published", label)

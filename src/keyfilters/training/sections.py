"""Sections of a recipe: frozen dataclasses that check their own types and ranges.

A field says what it takes: ``number(1e-3, above=0)``, ``choice("no", "fp16")``, or only its type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from math import isfinite
from typing import Any, ClassVar, Self, get_type_hints

from keyfilters.errors import KeyFiltersError, nearest

__all__ = ["Section", "choice", "number"]

KINDS: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    dict[str, Any]: (dict,),
    tuple[str, ...]: (tuple, list),
    tuple[str | int, ...]: (tuple, list),
    tuple[int, ...]: (tuple, list),
    tuple[float, ...]: (tuple, list),
}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def number(default: float, *, least: float | None = None, above: float | None = None,
           most: float | None = None) -> Any:  # fmt: skip
    """A field with a number between bounds; `above` is a bound it may not touch."""
    return field(default=default, metadata={"least": least, "above": above, "most": most})


def choice(*words: str) -> Any:
    """A field with one of a few words, the first by default."""
    return field(default=words[0], metadata={"words": words})


class Section:
    """A frozen dataclass whose values are checked whenever one is made."""

    section: ClassVar[str] = ""  # its name in a file, where that is not the name of the class

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for one in fields(self):  # type: ignore[arg-type]
            value, kind = getattr(self, one.name), types[one.name]
            where = f"{self.section or type(self).__name__.lower()}.{one.name}"
            allowed = KINDS.get(kind, (kind,))
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                expected = WORDS.get(kind, "a list" if tuple in allowed else "a section")
                raise KeyFiltersError(f"{where} is {value!r}; {expected} is expected")
            if kind is float:
                object.__setattr__(self, one.name, float(value))
            elif isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))
            _check_range(where, value, one.metadata)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Make a section from a table, and the sections in it from its tables.

        Raises:
            KeyFiltersError: a key that is unknown, or a value of another type or out of range.
        """
        types = get_type_hints(cls)
        known = [one.name for one in fields(cls)]  # type: ignore[arg-type]
        made = {}
        for key, value in values.items():
            if key not in known:
                place = f"[{where}]" if where else "the top of the recipe"
                message = f"{key!r} is no key of {place}; known are {', '.join(known)}"
                raise KeyFiltersError(message + nearest(key, known))
            inner = is_dataclass(types[key]) and isinstance(value, Mapping)
            made[key] = types[key].from_dict(value, key) if inner else value
        return cls(**made)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal one."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def _check_range(where: str, value: Any, limits: Mapping[str, Any]) -> None:
    if "words" in limits:
        if value not in limits["words"]:
            expected = f"one of {', '.join(limits['words'])} is expected"
            tail = nearest(value, limits["words"])
            raise KeyFiltersError(f"{where} is {value!r}; {expected}{tail}")
        return
    if isinstance(value, float) and not isfinite(value):
        raise KeyFiltersError(f"{where} is {value}; a finite number is expected")
    for name, fits, word in (
        ("least", lambda bound: value >= bound, "or more"),
        ("above", lambda bound: value > bound, "exceeded"),
        ("most", lambda bound: value <= bound, "or less"),
    ):
        bound = limits.get(name)
        if bound is not None and not fits(bound):
            expected = f"more than {bound}" if name == "above" else f"{bound} {word}"
            raise KeyFiltersError(f"{where} is {value}; {expected} is expected")

"""The sections of a recipe: pydantic dataclasses with errors of one sentence.

A field states its type, its bounds and, by `doc`, its meaning and unit.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass

from keyfilters.errors import KeyFiltersError, nearest

__all__ = ["doc", "section", "sentence"]

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

T = TypeVar("T")
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Moments = tuple[Annotated[float, Strict()], ...]
Table = dict[str, Any]


def doc(text: str, **bounds: Any) -> Any:
    """Return what pydantic knows of a field: its meaning, and bounds of its value."""
    return Field(description=text, **bounds)


@dataclass_transform(frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a section of a recipe: frozen and checked, with errors of one sentence."""
    made: Any = dataclass(frozen=True, config=CONFIG)(cls)
    checked = made.__init__

    def __init__(self: Any, *values: Any, **named: Any) -> None:  # noqa: N807
        try:
            checked(self, *values, **named)
        except ValidationError as error:
            raise KeyFiltersError(sentence(made, error)) from error

    made.__init__ = __init__
    return made


def sentence(cls: type, error: ValidationError) -> str:
    """Say the first fault that pydantic found: what was got, and what is expected."""
    first, place = error.errors()[0], []
    known = [one.name for one in fields(cls)]
    for name in first["loc"]:
        if name not in known:
            break
        place.append(str(name))
        cls = get_type_hints(cls)[str(name)]
        known = [one.name for one in fields(cls)] if is_dataclass(cls) else []
    got, context = first["input"], first.get("ctx", {})
    if first["type"] == "unexpected_keyword_argument":
        key = str(first["loc"][-1])
        where = f"[{place[-1]}]" if place else "the recipe"
        return f"{key!r} is no key of {where}; known are {', '.join(known)}{nearest(key, known)}"
    if "error" in context:
        return str(context["error"])
    expected = first["msg"].removeprefix("Input should be ") + " is expected"
    if first["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        expected = f"one of {', '.join(words)} is expected{nearest(str(got), words)}"
    return f"{'.'.join(place) or 'the recipe'} is {got!r}; {expected}"

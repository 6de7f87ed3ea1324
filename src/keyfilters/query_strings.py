"""What a user types for a condition or a data set: a name, with options behind a question mark."""

from __future__ import annotations

import re
from typing import Any

from keyfilters.errors import KeyFiltersError

__all__ = ["parse", "whole_number"]

WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,3})?", re.IGNORECASE)


def parse(asked: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME?key=value&key=value,value`` into the name and its options.

    Values are numbers where they look like one, a list where there is a comma, else text.

    Raises:
        KeyFiltersError: an option without ``=``, or the same one twice.

    >>> parse("center-surround?gammas=0.33,0.5&std=keep")
    ('center-surround', {'gammas': [0.33, 0.5], 'std': 'keep'})
    >>> parse("fashion-mnist")
    ('fashion-mnist', {})
    """
    name, _, rest = asked.partition("?")
    options: dict[str, Any] = {}
    for part in rest.split("&") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or not key or key in options:
            raise KeyFiltersError(f"cannot read {part!r} in {asked!r}; NAME?key=value is expected")
        values = [_value(x) for x in value.split(",")]
        options[key] = values if len(values) > 1 else values[0]
    return name, options


def _value(text: str) -> int | float | str:
    if WHOLE.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def whole_number(text: str) -> int | None:
    """Return a number of at most 18 decimal digits, None for any other text.

    >>> whole_number("32"), whole_number("²"), whole_number("9" * 5000)
    (32, None, None)
    """
    return int(text) if text.isdecimal() and len(text) <= 18 else None

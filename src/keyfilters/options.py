"""Nested options laid flat, and in what two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["differing", "flat"]


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the keys in which two requests differ, and how.

    >>> differing({"seed": 1, "options": {"lr": 1}}, {"seed": 1, "options": {"lr": 2}})
    ['options.lr (there 1, asked 2)']
    """
    was, now = flat(old), flat(new)
    return [
        f"{key} (there {was.get(key, 'absent')}, asked {now.get(key, 'absent')})"
        for key in [*now, *(key for key in was if key not in now)]
        if was.get(key, "absent") != now.get(key, "absent")
    ]


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options in one level with dotted names; lists become JSON text.

    >>> flat({"lr": 1, "data": {"size": [32, 32]}}, "options.")
    {'options.lr': 1, 'options.data.size': '[32, 32]'}
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            listed = isinstance(value, dict | list | tuple)
            found[prefix + key] = json.dumps(value) if listed else value
    return found

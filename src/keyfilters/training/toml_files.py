"""TOML: a file read with changes to it, and the text of a file with tables."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keyfilters.errors import KeyFiltersError

__all__ = ["read_toml", "toml_text"]


def read_toml(path: str | os.PathLike[str], changes: Sequence[str]) -> dict[str, Any]:
    """Read a file.

    Args:
        path: the file.
        changes: such as ``"optimiser.lr=0.01"``, which count before the file.

    Raises:
        KeyFiltersError: no such file, no TOML, or a change that is none.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFiltersError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeyFiltersError(f"{path} is no TOML file: {error}") from error
    for change in changes:
        _change(values, change)
    return values


def toml_text(values: Mapping[str, Any]) -> str:
    """Return the text of a file whose tables are the dictionaries among some values.

    >>> print(toml_text({"seed": 0, "data": {"name": "digits", "classes": (1, 2)}}), end="")
    seed = 0
    <BLANKLINE>
    [data]
    name = "digits"
    classes = [1, 2]
    """
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(values[key])}" for key in values if key not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key or len(sections) > 2:
        raise KeyFiltersError(f"{change!r} changes no recipe; type section.key=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise KeyFiltersError(f"{change!r}: {section} is no section")
    values[key] = value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)

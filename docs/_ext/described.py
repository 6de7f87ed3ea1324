"""What the code says of itself: command line, floors of the house, rules, families, recipes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

__all__ = ["command_line", "families", "floors", "recipe", "rules"]

ROOT = Path(__file__).parents[2]


def command_line() -> str:
    """Return the reference of all commands, written by typer from the parser."""
    import typer
    from typer.cli import get_docs_for_click

    from keyfilters.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="keyfilters")
    text = get_docs_for_click(obj=command, ctx=context, name="keyfilters")
    return text.split("\n", 1)[1]  # the page has its own title


def floors() -> str:
    """Return the floors of the import-linter contract as HTML, the highest first."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    lines = ['<div class="house">']
    for layer in layers:
        rooms = [
            re.sub(r"[()]|keyfilters\.", "", room).strip() for room in re.split(r"[|:]", layer)
        ]
        lines.append(
            '<div class="floor">'
            + "".join(f"<span>{room}<small>{_says(room)}</small></span>" for room in rooms)
            + "</div>"
        )
    return "\n".join([*lines, "</div>"])


def _says(room: str) -> str:
    """First sentence of a module's docstring."""
    import ast
    import html

    path = ROOT / "src" / "keyfilters" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return html.escape(
        text.split("\n\n")[0].split(". ")[0].replace("\n", " ").replace("`", "").rstrip(".")
    )


def rules() -> str:
    """Return the rules of `keyfilters.check` as a table."""
    from recorded import table

    from keyfilters.inspection.rules import RULES

    return table(
        ["rule", "level", "what is measured", "finding above", "what it may mean"],
        [[f"`{r.name}`", r.level, r.measures, r.threshold, r.advice] for r in RULES.values()],
    )


def families() -> str:
    """Return the families of idealised receptive fields as a table."""
    from recorded import table

    from keyfilters.receptive_fields.families import MATCHED

    return table(
        ["family", "kind", "formula", "parameters"],
        [[f.name, f.kind, f.formula, ", ".join(f.parameters)] for f in MATCHED],
    )


def recipe() -> str:
    """Return the keys of a recipe, a table a section: default, bounds, meaning."""
    from recorded import table

    from keyfilters.training import Recipe

    fields = Recipe.__pydantic_fields__
    sections = {name: x.default_factory for name, x in fields.items() if not x.description}
    parts = {"At the top": {name: x for name, x in fields.items() if name not in sections}}
    parts |= {f"`[{name}]`": kind.__pydantic_fields__ for name, kind in sections.items()}
    header = ["key", "default", "may be", "what it is"]
    return "\n".join(
        f"## {title}\n\n" + table(header, [_key(name, x) for name, x in keys.items()])
        for title, keys in parts.items()
    )


def _key(name: str, field: Any) -> list[str]:
    """One row: a key of a recipe, from what pydantic knows of it."""
    kinds = {str: "text", bool: "true or false", int: "integer", float: "number"}
    origin, choices = get_origin(field.annotation), get_args(field.annotation)
    default = field.get_default(call_default_factory=True)
    if origin is Literal:
        may = ", ".join(f"`{x}`" for x in choices)
    else:
        may = kinds.get(field.annotation, "table" if origin is dict else "list")
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = {key: getattr(x, key) for x in field.metadata for key in signs if hasattr(x, key)}
    for loose, strict in (("ge", "gt"), ("le", "lt")):
        if strict in bounds:
            bounds.pop(loose, None)
    said = ", ".join(f"{sign} {bounds[key]}" for key, sign in signs.items() if key in bounds)
    return [f"`{name}`", f"`{json.dumps(default)}`", f"{may} {said}".strip(), field.description]

"""From data to one self-contained HTML file: what all pages share."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["asset", "render", "script_json", "write_page"]


def render(template: str, **context: object) -> str:
    """Fill a template of ``report/assets`` and return the page as HTML text.

    Text is escaped, a name that the template uses and `context` lacks is an error, ``css`` is the
    style of all pages (put it into ``<style>`` with the filter ``safe``), and beside Jinja's own
    filters there are ``percent(digits=0)`` ("–" for NaN) and ``number`` (1,234).

    Args:
        template: name of a file in ``report/assets``, such as ``"page.html.j2"``.
        context: what the template shows; charts are SVG text, written with the filter ``safe``.
    """
    return _environment().get_template(template).render(css=asset("page.css"), **context)


def write_page(html: str, path: str | os.PathLike[str]) -> Path:
    """Write a page, make its folder if need be, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def asset(name: str) -> str:
    """Return the text of a file in ``report/assets``."""
    return resources.files("keyfilters.report").joinpath("assets", name).read_text("utf-8")


def script_json(data: object) -> str:
    r"""Return data as JSON that may stand inside ``<script>``.

    >>> script_json({"name": "</script>"})
    '{"name": "\\u003c/script>"}'
    """
    # Only "</" and "<!--" could end or open something.
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("keyfilters.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda x, digits=0: "–" if pd.isna(x) else f"{x:.{digits}%}"
    environment.filters["number"] = lambda x: f"{x:,}"
    return environment

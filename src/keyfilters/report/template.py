"""From data to one self-contained HTML file: what all pages share."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from keyfilters.files import write_whole
from keyfilters.texts import printable

__all__ = ["asset", "content_security_policy", "render", "script_json", "write_page"]


def render(template: str, **context: object) -> str:
    """Fill a template of ``report/assets`` and return the page as HTML text.

    Text is escaped, and characters that steer the text around them are written out. A name that the
    template uses and `context` lacks is an error, ``css`` is the style of all pages (put it into
    ``<style>`` with the filter ``safe``), and beside Jinja's own filters there are
    ``percent(digits=0)`` ("–" for NaN) and ``number`` (1,234).

    Args:
        template: name of a file in ``report/assets``, such as ``"page.html.j2"``.
        context: what the template shows; charts are SVG text, written with the filter ``safe``.
    """
    page = _environment().get_template(template)
    policy = content_security_policy(str(context.get("js", "")))
    return page.render(css=asset("page.css"), policy=policy, **context)


def content_security_policy(script: str = "") -> str:
    """Return what a page may do: show its own pictures and styles, and run this one script.

    A browser that holds to it runs no script that came in with a name and asks the network for
    nothing.

    >>> content_security_policy()
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    """
    rules = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", "base-uri 'none'"]
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules.append(f"script-src 'sha256-{digest}'")
    return "; ".join(rules)


def write_page(html: str, path: str | os.PathLike[str]) -> Path:
    """Write a page, make its folder if need be, and return its path.

    Raises:
        KeyFiltersError: it cannot be written; the last good page stays.
    """
    path = Path(path)
    write_whole(path, html)
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


def _shown(value: object) -> object:
    """Write out what could turn or hide the text around it; our own SVG and styles stay."""
    return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("keyfilters.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda x, digits=0: "–" if pd.isna(x) else f"{x:.{digits}%}"
    environment.filters["number"] = lambda x: f"{x:,}"
    return environment

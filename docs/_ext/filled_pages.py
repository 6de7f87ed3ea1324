"""Fill pages when the site is built: `{{ … }}` in FOLDERS is evaluated by Jinja, maths by MathML.

What a page may call is in `recorded` (figures of benchmarks/results) and `described` (what the code
says of itself). A name that misses ends the build.
"""

from __future__ import annotations

from typing import Any

import described
import recorded
from docutils import nodes
from jinja2 import Environment, StrictUndefined
from latex2mathml.converter import convert
from sphinx.application import Sphinx

FOLDERS = ("results/", "reference/", "design", "index")


def environment() -> Environment:
    """Return the Jinja environment with everything that a page may call."""
    jinja = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    for module in (recorded, described):
        jinja.globals |= {name: getattr(module, name) for name in module.__all__}
    return jinja


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Evaluate what stands in double braces."""
    if page.startswith(FOLDERS):
        source[0] = environment().from_string(source[0]).render()
        for path in recorded.RESULTS.glob("*.json"):
            app.env.note_dependency(str(path))


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", fill)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

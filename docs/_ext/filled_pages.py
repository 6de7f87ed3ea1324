"""Fill pages when the site is built: `{{ … }}` in FOLDERS is evaluated by Jinja, maths by MathML.

A name that misses ends the build. Figures of pages are drawn by `result_figures` and
`theory_figures`.
"""

from __future__ import annotations

from typing import Any

import filling
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

FOLDERS = ("results/", "reference/", "design", "index", "speed")


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Evaluate what stands in double braces."""
    if page.startswith(FOLDERS):
        source[0] = filling.environment().from_string(source[0]).render()
        for path in filling.RESULTS.glob("*.json"):
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

"""What pages may call: figures of benchmarks/results, and what the code says of itself."""

from __future__ import annotations

import contrasts
import described
import measured
import recorded
import written
from jinja2 import Environment, StrictUndefined
from recorded import RESULTS

__all__ = ["RESULTS", "environment"]


def environment() -> Environment:
    """Return the Jinja environment of the pages; an unknown name is an error."""
    jinja = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    for module in (recorded, measured, contrasts, described, written):
        jinja.globals |= {name: getattr(module, name) for name in module.__all__}
    return jinja

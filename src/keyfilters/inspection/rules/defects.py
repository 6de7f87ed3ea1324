"""Filters that have no shape: non-finite, dead and constant ones."""

from __future__ import annotations

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES"]


def _share(flaw: str, layer: LayerFilters) -> Measured:
    channels = np.flatnonzero(layer.flaw == flaw)
    return Measured(len(channels) / len(layer), channels)


RULES = (
    Rule(
        "non-finite",
        "error",
        "share of a layer's filters with a NaN or infinite tap",
        0.0,
        "the training diverged, or the file is damaged",
        layer=lambda layer: _share("non-finite", layer),
    ),
    Rule(
        "dead",
        "note",
        "share of a layer's filters whose taps are all at most 1e-4 in absolute value",
        0.0,
        "weight decay has removed channels; they can be pruned",
        layer=lambda layer: _share("dead", layer),
    ),
    Rule(
        "dead-layer",
        "warning",
        "share of a layer's filters whose taps are all at most 1e-4 in absolute value",
        0.75,
        "the layer passes next to nothing on",
        layer=lambda layer: _share("dead", layer),
    ),
    Rule(
        "constant",
        "warning",
        "share of a layer's filters whose taps are all equal",
        0.1,
        "these filters only average; was the layer initialised with a constant?",
        layer=lambda layer: _share("constant", layer),
    ),
)

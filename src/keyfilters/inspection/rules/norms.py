"""Norms that explode or vanish."""

from __future__ import annotations

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES"]

EXPLODED = 1e4  # of the median; batch normalisation folded into real models reaches 2,000


def _exploding(layer: LayerFilters) -> Measured | None:
    if not len(layer.usable):
        return None
    ratio = layer.norm[layer.usable] / np.median(layer.norm[layer.usable])
    return Measured(float(ratio.max()), layer.usable[ratio > EXPLODED])


def _vanishing(layer: LayerFilters) -> Measured | None:
    if not len(layer.usable):
        return None
    small = layer.norm[layer.usable] < 1e-3 * np.median(layer.norm[layer.usable])
    return Measured(float(small.mean()), layer.usable[small])


def _level(layer: LayerFilters) -> Measured | None:
    norms = layer.norm[layer.finite]
    norms = norms[norms > 0]
    if not len(norms):
        return None
    return Measured(float(np.abs(np.log10(np.median(norms)))), layer.finite)


RULES = (
    Rule(
        "exploding",
        "warning",
        "largest norm of a layer's filters over their median norm",
        EXPLODED,
        "one channel drowns the others; training diverges, or batch normalisation was folded "
        "with a variance near 0",
        layer=_exploding,
    ),
    Rule(
        "vanishing",
        "warning",
        "share of a layer's filters that are not dead and have less than a thousandth of the "
        "median norm",
        0.05,
        "these channels pass next to nothing on",
        layer=_vanishing,
    ),
    Rule(
        "norm-level",
        "warning",
        "orders of magnitude between the median norm of a layer's filters and 1",
        3.0,
        "the whole layer is scaled far off; was a scale applied twice, or lost?",
        layer=_level,
    ),
)

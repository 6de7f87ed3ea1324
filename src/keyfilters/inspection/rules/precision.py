"""What number formats of few bits leave of the taps."""

from __future__ import annotations

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES"]

SUBNORMAL = float(np.finfo(np.float16).tiny)  # 6.1e-5: below it float16 loses digits
STEPS = 127  # of int8 on either side of 0
FEW = 3  # values: one step on either side of 0


def _subnormal(layer: LayerFilters) -> Measured | None:
    size = np.abs(layer.flat[layer.usable])
    taps = size > 0
    if not taps.any():
        return None
    small = taps & (size < SUBNORMAL)
    return Measured(float(small.sum() / taps.sum()), layer.usable[small.any(axis=1)])


def _int8_range(layer: LayerFilters) -> Measured | None:
    if not len(layer.usable):
        return None
    largest = np.abs(layer.flat[layer.usable]).max(axis=1)
    steps = np.round(largest / largest.max() * STEPS)
    channels = layer.usable[steps <= 1]
    return Measured(len(channels) / len(layer), channels)


def _few_values(layer: LayerFilters) -> Measured | None:
    if layer.flat.shape[1] <= 2 * FEW or not len(layer.usable):
        return None
    ordered = np.sort(layer.flat[layer.usable], axis=1)
    values = 1 + (np.diff(ordered, axis=1) > 0).sum(axis=1)
    channels = layer.usable[values <= FEW]
    return Measured(len(channels) / len(layer), channels)


RULES = (
    Rule(
        "float16-subnormal",
        "warning",
        "share of a layer's taps other than 0 that are below 6.1e-5, where float16 loses digits",
        0.5,
        "scale the layer up before casting it to float16, or use bfloat16",
        layer=_subnormal,
    ),
    Rule(
        "int8-range",
        "note",
        "share of a layer's filters that one int8 scale for the layer rounds to at most one step "
        "on either side of 0",
        0.25,
        "quantise with one scale a channel",
        layer=_int8_range,
    ),
    Rule(
        "few-values",
        "warning",
        "share of a layer's filters whose taps take at most three values",
        0.5,
        "the weights are quantised too coarsely for their scale",
        layer=_few_values,
    ),
)

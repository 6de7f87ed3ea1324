"""What number formats of few bits leave of the taps."""

from __future__ import annotations

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES"]

LOST = 1e-3  # of the norm: float16 rounds by at most 5e-4, unless a tap is too small or too large
SMALL = 1e-3  # of the layer's median norm: a filter below passes next to nothing on
STEPS = 127  # of int8 on either side of 0
FEW = 3  # values: one step on either side of 0


def _float16(layer: LayerFilters) -> Measured | None:
    norm = layer.norm[layer.finite]
    if not (norm > 0).any():
        return None
    channels = layer.finite[norm > SMALL * np.median(norm[norm > 0])]
    taps = layer.flat[channels]
    with np.errstate(over="ignore"):
        cast = taps.astype(np.float16).astype(np.float64)
    lost = ~(np.linalg.norm(cast - taps, axis=1) <= LOST * layer.norm[channels])
    return Measured(float(lost.sum() / len(layer)), channels[lost])


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
        "float16-range",
        "warning",
        "share of a layer's filters that a cast to float16 changes by more than 0.1 % of their "
        "norm, since taps are below 6.1e-5 or above 65,504",
        0.1,
        "scale the layer before casting it to float16, or use bfloat16",
        layer=_float16,
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

"""Where filters lie in their window, and the frequencies that they pass."""

from __future__ import annotations

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule
from keyfilters.sizes import tap_offsets

__all__ = ["RULES"]

FEWEST = 8  # filters, for a mean over a layer
CORNER = 0.375  # cycles a tap: three quarters of the way to Nyquist


def _off_grid(layer: LayerFilters) -> Measured | None:
    if len(layer.usable) < FEWEST:
        return None
    k_y, k_x = layer.layer.size
    energy = (layer.unit.reshape(-1, k_y, k_x) ** 2).mean(axis=0)
    x = float(energy.sum(axis=0) @ tap_offsets(k_x).numpy())
    y = float(energy.sum(axis=1) @ tap_offsets(k_y).numpy())
    return Measured(float(np.hypot(x, y)), layer.usable)


def _checkerboard(layer: LayerFilters) -> Measured | None:
    if len(layer.usable) < FEWEST:
        return None
    y, x = layer.frequencies
    return Measured(float(layer.spectrum[(y >= CORNER) & (x >= CORNER)].sum()), layer.usable)


def _aliasing(layer: LayerFilters) -> Measured | None:
    stride = layer.layer.stride
    if len(layer.usable) < FEWEST or stride is None or max(stride) < 2:
        return None
    y, x = layer.frequencies
    passed = (y <= 0.5 / stride[0]) & (x <= 0.5 / stride[1])
    return Measured(1 - float(layer.spectrum[passed].sum()), layer.usable)


RULES = (
    Rule(
        "off-grid",
        "note",
        "distance in taps between the centre of a layer's mean energy and the centre of the window",
        0.35,
        "stride and padding push the filters to one side; pad symmetrically, or expect half a tap "
        "where a layer subsamples",
        layer=_off_grid,
    ),
    Rule(
        "checkerboard",
        "warning",
        "share of the energy of a layer's filters above three quarters of Nyquist along both axes "
        "(independent taps: about 0.09)",
        0.25,
        "the filters pass checkerboards; look for deconvolution or unpooling artefacts",
        layer=_checkerboard,
    ),
    Rule(
        "aliasing",
        "warning",
        "of a layer that subsamples: share of its filters' energy beyond the Nyquist frequency of "
        "its output (independent taps: about 0.77 at stride 2)",
        0.9,
        "what the filters pass folds onto lower frequencies; blur before the stride",
        layer=_aliasing,
    ),
)

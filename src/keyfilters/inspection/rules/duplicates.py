"""Filters that repeat another of their layer, also up to sign and a·x + b."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES", "nearest_sine"]

EQUAL = 1e-5  # sine of the angle between two forms that float32 arithmetic cannot tell apart
NEAR, NEARER = 0.05, 0.01
MANY = 0.5
BLOCK = 1024


def nearest_sine(unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sine of the angle between each form and the nearest other, up to sign.

    Args:
        unit: ``(m, taps)`` centred, of unit norm; m at least 2.

    Returns:
        ``(m,)`` in [0, 1]; it is the residual of the best a·x + b over the norm of the centred
        filter.
    """
    sine = np.empty(len(unit))
    for start in range(0, len(unit), BLOCK):
        part = unit[start : start + BLOCK]
        cosine = np.abs(part @ unit.T)
        rows = np.arange(len(part))
        cosine[rows, start + rows] = -1.0
        other = cosine.argmax(axis=1)
        sign = np.sign(np.einsum("nt,nt->n", part, unit[other]))
        # From the difference: 1 - cosine**2 would lose what distinguishes near equals.
        chord = np.linalg.norm(part - sign[:, None] * unit[other], axis=1)
        sine[start : start + BLOCK] = chord * np.sqrt(np.maximum(1 - chord**2 / 4, 0))
    return sine


def _duplicates(layer: LayerFilters) -> Measured | None:
    if len(layer.usable) < 2:
        return None
    channels = layer.usable[nearest_sine(layer.unit) < EQUAL]
    return Measured(len(channels) / len(layer), channels)


def _near_duplicates(layer: LayerFilters) -> Measured | None:
    if len(layer.usable) < 2:
        return None
    sine = nearest_sine(layer.unit)
    near = sine < NEAR
    if near.mean() <= MANY:  # drawing the null takes most of the time of a check
        return Measured(float(near.mean()), layer.usable[near])
    chance = float((nearest_sine(layer.null_unit) < NEAR).mean())
    # Noise of the covariance of a few copied filters repeats them too; that excuses no copies.
    value = max(float(near.mean()) - chance, float((sine < NEARER).mean()))
    return Measured(value, layer.usable[near], chance)


RULES = (
    Rule(
        "duplicate",
        "warning",
        "share of a layer's filters that equal another of the layer up to a·x + b, to rounding",
        0.1,
        "channels were copied (a widened or padded network) or the weights are coarse",
        layer=_duplicates,
    ),
    Rule(
        "near-duplicate",
        "warning",
        "share of a layer's usable filters of which another differs by at most 5 % up to a·x + b, "
        "less the same share of noise with the same covariance; or by at most 1 %, if that is more",
        MANY,
        "the layer has fewer different filters than channels; share or prune them",
        layer=_near_duplicates,
    ),
)

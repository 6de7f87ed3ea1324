"""Layers whose filters could be those of an initialisation with independent taps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES", "sphericity"]

DEVIATIONS = 4.0  # standard deviations of chance: of 15,000 white layers one lies outside
CONCENTRATED = 0.015  # a layer tells only if so little concentration could have been seen


def sphericity(layer: LayerFilters) -> tuple[float, float] | None:
    r"""Return how far a layer's filters are from independent taps, and the standard error.

    The default initialisations draw independent taps, so that centred unit forms u point in
    all d = taps − 1 directions alike. The statistic is
    ``(d / (m (m − 1)) Σ_{i≠j} (u_i · u_j)² − 1) / (d − 1)``: 0 on average for independent taps,
    1 for filters that are all alike; its standard error under independence is
    ``2 √((d − 1) / (m (m − 1) (d + 2))) / (d − 1)``, the sign test of sphericity.

    Args:
        layer: the layer.

    Returns:
        None for fewer than 8 filters that have a shape, or fewer than three taps.
    """
    count, d = len(layer.usable), layer.freedom
    if count < 8 or d < 2:
        return None
    moment = layer.unit.T @ layer.unit
    pairs = count * (count - 1)
    excess = d * (float((moment**2).sum()) - count) / pairs - 1
    error = 2 * np.sqrt((d - 1) / (pairs * (d + 2)))
    return excess / (d - 1), float(error) / (d - 1)


def looks_untrained(layer: LayerFilters) -> bool | None:
    """Whether the filters lie within chance of independent taps; None where it cannot be told."""
    found = sphericity(layer)
    if found is None or DEVIATIONS * found[1] > CONCENTRATED:
        return None
    return found[0] < DEVIATIONS * found[1]


def _layer(layer: LayerFilters) -> Measured | None:
    white = looks_untrained(layer)
    return None if white is None else Measured(float(white), layer.usable)


def _model(layers: Sequence[LayerFilters]) -> Measured | None:
    told = [white for layer in layers if (white := looks_untrained(layer)) is not None]
    return Measured(float(np.mean(told))) if told else None


RULES = (
    Rule(
        "untrained",
        "warning",
        "share of a model's layers whose filters lie within 4 standard deviations of independent "
        "taps (of the layers with filters enough to tell)",
        0.5,
        "the weights were not loaded, or hardly trained",
        model=_model,
    ),
    Rule(
        "untrained-layer",
        "note",
        "whether a layer's filters lie within 4 standard deviations of independent taps (1 or 0)",
        0.5,
        "the layer was initialised anew, or learns nothing; late 3×3 layers of healthy models "
        "can look so",
        layer=_layer,
    ),
)

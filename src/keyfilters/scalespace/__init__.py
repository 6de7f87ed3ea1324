"""Discrete scale-space: mathematics on tensors, with no model and no file in sight."""

from keyfilters.scalespace.differences import difference
from keyfilters.scalespace.gaussian import discrete_gaussian
from keyfilters.scalespace.moments import (
    dc_offset,
    half_grid_offset,
    monomial_response,
    separability_index,
    spread,
)
from keyfilters.scalespace.unit import DEAD_BELOW, centred_unit, why_unusable

__all__ = [
    "DEAD_BELOW",
    "centred_unit",
    "dc_offset",
    "difference",
    "discrete_gaussian",
    "half_grid_offset",
    "monomial_response",
    "separability_index",
    "spread",
    "why_unusable",
]

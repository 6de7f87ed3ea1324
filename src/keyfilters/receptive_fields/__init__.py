"""Idealised receptive fields: what a filter would be if it were exactly of one kind."""

from keyfilters.filter_files import read_filters
from keyfilters.receptive_fields.dictionary import Dictionary, build_dictionary
from keyfilters.receptive_fields.families import FAMILIES, KINDS, Family, family
from keyfilters.receptive_fields.fitting import METHODS, Fit, fit_idealized
from keyfilters.receptive_fields.matching import has_models, match
from keyfilters.receptive_fields.operators import OPERATORS, Operator, operator
from keyfilters.receptive_fields.published import (
    PUBLISHED,
    PUBLISHED_NAMES,
    PUBLISHED_OPERATORS,
    published_filters,
    published_in,
    published_parameters,
)

__all__ = [
    "FAMILIES",
    "KINDS",
    "METHODS",
    "OPERATORS",
    "PUBLISHED",
    "PUBLISHED_NAMES",
    "PUBLISHED_OPERATORS",
    "Dictionary",
    "Family",
    "Fit",
    "Operator",
    "build_dictionary",
    "family",
    "fit_idealized",
    "has_models",
    "match",
    "operator",
    "published_filters",
    "published_in",
    "published_parameters",
    "read_filters",
]

"""Idealised receptive fields: what a filter would be if it were exactly of one kind."""

from keyfilters.receptive_fields.dictionary import Dictionary, build_dictionary
from keyfilters.receptive_fields.families import FAMILIES, KINDS, Family

__all__ = ["FAMILIES", "KINDS", "Dictionary", "Family", "build_dictionary"]

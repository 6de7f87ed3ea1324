"""A recipe that also says what is done to the depthwise filters before training.

    filters = "keys?learn=bias"

or, option by option::

    [filters]
    keys = "lindeberg2026-B"
    learn = ["bias"]
    assign_from = "timm:convnextv2_tiny.fcmae_ft_in1k"
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator

from keyfilters.surgery.treatment import Treatment
from keyfilters.training import Recipe, section

__all__ = ["FilterRecipe"]


def _parsed(given: Any) -> Any:
    return Treatment.parse(given) if isinstance(given, str) else given


@section
class FilterRecipe(Recipe):
    """A recipe with a section ``[filters]``; without it, a recipe like any other.

    >>> recipe = FilterRecipe.from_dict({"filters": "keys?learn=bias"})
    >>> recipe.filters.keys, recipe.filters.learn
    ('lindeberg2026-B', ('bias',))
    """

    filters: Annotated[Treatment, BeforeValidator(_parsed)] = field(default_factory=Treatment)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal recipe."""
        values = super().to_dict()
        del values["filters"]
        filters = self.filters.to_dict()
        return {**values, "filters": filters} if filters else values

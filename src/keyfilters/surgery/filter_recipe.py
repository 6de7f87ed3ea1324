"""A recipe that also says what is done to the depthwise filters before training.

    filters = "keys?learn=bias"

or, option by option::

    [filters]
    keys = "lindeberg2026-B"
    learn = ["bias"]
    assign_from = "timm:convnextv2_tiny.fcmae_ft_in1k"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from keyfilters.surgery.treatment import Treatment
from keyfilters.training import Recipe

__all__ = ["FilterRecipe"]


@dataclass(frozen=True)
class FilterRecipe(Recipe):
    """A recipe with a section ``[filters]``; without it, a recipe like any other.

    >>> recipe = FilterRecipe.from_dict({"filters": "keys?learn=bias"})
    >>> recipe.filters.keys, recipe.filters.learn
    ('lindeberg2026-B', ('bias',))
    """

    section: ClassVar[str] = "recipe"
    filters: Treatment = field(default_factory=Treatment)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Make a recipe from nested dictionaries, as `Recipe.from_dict`."""
        given = dict(values)
        if "filters" in given:
            given["filters"] = Treatment.of(given["filters"])
        return super().from_dict(given, where)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal recipe."""
        values = super().to_dict()
        del values["filters"]
        filters = self.filters.to_dict()
        return {**values, "filters": filters} if filters else values

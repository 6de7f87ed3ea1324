"""What an idealised filter is: a sum of differences of the discrete Gaussian, with its names.

Arrays hold filters as frameworks store them, row 0 on top; x runs to the right and y **upwards**.
All families are listed in `keyfilters.receptive_fields.families`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields.affine import draw_rotated
from keyfilters.receptive_fields.drawing import BETWEEN, draw_terms
from keyfilters.sizes import Window

__all__ = ["KINDS", "PARAMETERS", "Family", "Parameter", "Term"]

KINDS = (
    "centre",
    "off-grid centre",
    "edge",
    "half-edge",
    "second derivative",
    "cross or square",
    "higher derivative",
)


class Parameter(NamedTuple):
    """A parameter of families: its column in the table of `match`, and its largest value."""

    column: str
    largest: float
    in_sides: bool = True  # whether `largest` is a multiple of the window's longer side


# Beyond a scale of half the window a shape goes flat; a second, wider scale may go on.
PARAMETERS = {
    "sigma": Parameter("sigma_x", 0.5),
    "sigma_x": Parameter("sigma_x", 0.5),
    "sigma_y": Parameter("sigma_y", 0.5),
    "sigma_long": Parameter("second", 1.0),
    "sigma_surround": Parameter("second", 1.0),
    "sigma_across": Parameter("second", 0.5),
    "alpha": Parameter("second", 5.0, in_sides=False),
    "angle": Parameter("angle", math.inf, in_sides=False),
}


class Term(NamedTuple):
    """One product ``weight · x T(·; scale²) ⊗ y T(·; scale²)`` of operators along x and y.

    Attributes:
        x: operator along x, see `keyfilters.scalespace.difference`; two operators are applied one
            after the other where they are separated by a blank.
        y: operator along y, which points upwards.
        weight: a number, or a function of the parameters that returns ``(n,)``.
        scales: parameters that are the scales along x and y; "" is the scale 0, an impulse.
    """

    x: str
    y: str
    weight: float | Callable[[Mapping[str, Tensor]], Tensor] = 1.0
    scales: tuple[str, str] = ("sigma", "sigma")


@dataclass(frozen=True)
class Family:
    """One kind of idealised filter.

    A family's sign is that of its amplitude, and the two signs have names of their own. In those
    names a direction points towards the bright side, and *(on)* and *(off)* tell the sign of the
    centre tap.

    Attributes:
        name: identifies the family.
        kind: coarse group, one of `KINDS`.
        positive: name of a pattern with positive amplitude.
        negative: name of a pattern with negative amplitude.
        formula: what is rendered.
        terms: the sum that is rendered.
        parameters: names of the parameters, among `PARAMETERS`; scales in taps, the angle in
            radians counter-clockwise from x.
        rank: simplicity; among forms that fit equally well the lowest rank gives the name.
        smallest: least number of taps along the shorter side in which the form can be seen.
        rotated: whether T has the scale σ along the angle and σ⊥ across it.
        separable: the operators along x and y of a single product with free scales; else None.
        shift: where the middle of a round form lies, (right, up) in taps; None for other forms.
        names_patterns: whether patterns are named by it; families with a free angle or a second
            scale contain simpler ones and are for matching single filters.
        matched: whether `match` tries it; another family contains those that it leaves out.
        operator: the name under which `fit_idealized` knows it, or "".
        group: filters of one group share σ in the joint methods of `fit_idealized`.
    """

    name: str
    kind: str
    positive: str
    negative: str
    formula: str
    terms: tuple[Term, ...]
    parameters: tuple[str, ...] = ("sigma",)
    rank: int = 0
    smallest: int = 1
    rotated: bool = False
    separable: tuple[str, str] | None = None
    shift: tuple[float, float] | None = None
    names_patterns: bool = True
    matched: bool = True
    operator: str = ""
    group: str = ""

    def render(self, parameters: Tensor, size: tuple[int, int]) -> Tensor:
        """Draw the filters.

        Args:
            parameters: ``(n, p)``, in the order of the family's names.
            size: window ``(k_y, k_x)`` in taps.

        Returns:
            ``(n, k_y, k_x)``, row 0 on top.

        Raises:
            KeyFiltersError: another number of parameters than the family has.

        >>> import torch
        >>> from keyfilters.receptive_fields import family
        >>> family("laplacian").render(torch.tensor([[0.0]]), (3, 3))[0].tolist()
        [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
        """
        if parameters.ndim != 2 or parameters.shape[1] != len(self.parameters):
            raise KeyFiltersError(
                f"the family {self.name!r} takes parameters of shape (n, {len(self.parameters)}): "
                f"{', '.join(self.parameters)}; got {tuple(parameters.shape)}"
            )
        named = dict(zip(self.parameters, parameters.unbind(1), strict=True))
        return (draw_rotated if self.rotated else draw_terms)(self.terms, named, size)

    def in_window(self, size: Window) -> Family | None:
        """Return the family as it is in a window; None where a simpler one draws all its forms.

        Windows of at least 3 taps a side have all families. Of one row or column those are left
        that vary along it, of two those without a second difference across it; scales across it,
        which cannot be told, are no parameters.

        >>> from keyfilters.receptive_fields import family
        >>> family("x:d y:0").in_window((1, 7)).formula, family("laplacian").in_window((1, 7))
        ('δx T(σx)', None)
        """
        if min(size) >= 3:
            return self
        if min(size) < self.smallest or self.kind == "cross or square":
            return None
        across = 0 if size[1] < size[0] else 1
        terms = list(self.terms)
        if min(size) == 1:
            terms = [t for t in terms if "d" not in (t.x, t.y)[across]]
            simple = len(terms) < len(self.terms) and "alpha" not in self.parameters
            if any((t.x, t.y)[across] != "0" for t in terms):
                return None
            if not terms or (simple and self.shift in (None, (0.0, 0.0))):
                return None
        elif self.separable is not None and self.separable[across] == "dd":
            return None
        if self.separable is None:
            return replace(self, terms=tuple(terms))
        scale = ("sigma_x", "sigma_y")[1 - across]
        scales = (scale, "") if across else ("", scale)
        only = tuple(t._replace(scales=scales) for t in terms)
        formula = self.formula.replace("T(σx, σy)", f"T(σ{'yx'[across]})")
        return replace(self, terms=only, parameters=(scale,), formula=formula)

    def columns(self, size: Window) -> list[str]:
        """Return the columns of the table of `match` that hold the parameters, in their order."""
        found = [PARAMETERS[name].column for name in self.parameters]
        return ["sigma_y" if x == "sigma_x" and size[1] == 1 else x for x in found]

    def bounds(self, size: Window) -> tuple[tuple[float, float], ...]:
        """Return the least and the largest value of every parameter in a window ``(k_y, k_x)``.

        In windows of even sides a scale is at least ½, that of the mean of two taps.

        >>> from keyfilters.receptive_fields import family
        >>> family("sharpen").bounds((7, 7))
        ((0.0, 3.5), (0.0, 5.0))
        """
        sides = {"sigma_x": size[1], "sigma_y": size[0]}
        limits = []
        for name in self.parameters:
            _, largest, in_sides = PARAMETERS[name]
            largest *= sides.get(name, max(size)) if in_sides else 1
            own = [sides[name]] if name in sides else [k for k in size if k > 1]
            even = [k % 2 == 0 for k in own]
            between = in_sides and (any(even) if self.rotated else all(even))
            limits.append((-largest if name == "angle" else math.sqrt(BETWEEN) * between, largest))
        return tuple(limits)

    @property
    def isotropic(self) -> bool:
        """Whether one σ serves both directions."""
        return self.parameters[0] == "sigma" and not self.rotated

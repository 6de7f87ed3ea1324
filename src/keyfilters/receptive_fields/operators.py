"""The operators that a filter is fitted with: families under the names of the public surface.

``"dx"``, ``"dy"`` are centred first differences of the discrete Gaussian T, ``"dx+"``, ``"dx-"``,
``"dy+"``, ``"dy-"`` one-sided ones, ``"dxx"``, ``"dyy"``, ``"dxy"`` second ones, ``"laplacian"``
the five-point Laplacian of T, ``"sharpen"`` is ``δ₀ − α ∇²₅ T`` and ``"smooth"`` is T itself. The y
axis points **upwards** while rows of arrays run downwards: ``"dy+"`` takes a row of T from the one
above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.receptive_fields.drawing import draw_cut_terms
from keyfilters.receptive_fields.families import BY_OPERATOR, Family
from keyfilters.scalespace import dc_offset, monomial_response
from keyfilters.sizes import Size, as_window, extent

__all__ = ["BORDERS", "OPERATORS", "Border", "Operator", "normalized_filters", "operator"]

Border = Literal["published", "exact"]
BORDERS: tuple[str, ...] = get_args(Border)


@dataclass(frozen=True)
class Operator:
    """A family as `fit_idealized` uses it: with two ways to draw the border, and an amplitude."""

    family: Family

    @property
    def name(self) -> str:
        """The name that the public surface gives it."""
        return self.family.operator

    @property
    def terms(self) -> tuple[tuple[str, str], ...]:
        """What is summed, as pairs of operators along x and along y; the impulse is left out."""
        return tuple((term.x, term.y) for term in self.family.terms if term.scales[0])

    @property
    def order(self) -> tuple[int, int]:
        """Orders of differentiation of the first term along x and along y."""
        first = self.family.terms[0]
        return first.x.count("d"), first.y.count("d")

    @property
    def sharpens(self) -> bool:
        """Whether the parameters are (σ, α) instead of (σx, σy)."""
        return "alpha" in self.family.parameters

    @property
    def isotropic(self) -> bool:
        """Whether one σ serves both directions."""
        return self.family.isotropic

    def render(
        self,
        sigma_x: Tensor,
        sigma_y: Tensor,
        alpha: Tensor | None = None,
        *,
        size: Size,
        border: Border = "published",
    ) -> Tensor:
        """Draw the form (lindeberg2026modelling).

        Borders: ``"exact"`` applies the differences to the untruncated kernel and then cuts it to
        the window. ``"published"`` does as the published analysis: it cuts T first, repeats its
        outermost tap for a first difference and takes 0 beyond the window for a second one. The two
        differ only in the outermost rows and columns.

        Args:
            sigma_x: ``(n,)`` scales along x in taps.
            sigma_y: ``(n,)`` scales along y in taps, equal to `sigma_x` where one σ serves both.
            alpha: ``(n,)`` strength of the surround; for ``"sharpen"``, and only there.
            size: taps k along either side, or ``(k_y, k_x)``; in a window of even side, or of one
                row or column, the form is drawn as `keyfilters.receptive_fields.drawing` says.
            border: one of `BORDERS`.

        Returns:
            ``(n, k_y, k_x)``, row 0 on top.

        Raises:
            KeyFiltersError: bad size or border, a missing or needless α, or two scales where the
                form has one.

        >>> half = torch.tensor([0.5])
        >>> operator("dy+").render(half, half, size=3)[0, :, 1] > 0  # bright below the centre
        tensor([False, False,  True])
        """
        window = as_window(size)
        if 2 in window or window == (1, 1):
            raise KeyFiltersError(
                "size must be at least 3 taps a side, or a single row or column, got "
                f"{extent(window)}"
            )
        if border not in BORDERS:
            raise KeyFiltersError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")
        if self.isotropic and not torch.equal(sigma_x, sigma_y):
            raise KeyFiltersError(f"{self.name!r} has one scale; give sigma_y equal to sigma_x")
        if (alpha is not None) != self.sharpens:
            state = "needs" if self.sharpens else "has no"
            raise KeyFiltersError(f"the operator {self.name!r} {state} alpha")
        named = {"sigma": sigma_x, "sigma_x": sigma_x, "sigma_y": sigma_y}
        if alpha is not None:
            named["alpha"] = alpha
        if border == "published":
            return draw_cut_terms(self.family.terms, named, window)
        parameters = torch.stack([named[name] for name in self.family.parameters], dim=1)
        return self.family.render(parameters, window)

    def normalize(self, filters: Tensor) -> Tensor:
        """Bring filters to the amplitude at which this operator draws (lindeberg2026modelling).

        First order: divided by the response to the monomial x or y along the derivative direction,
        taken about the mean of ``|f|``. ``"smooth"`` and ``"sharpen"``: the DC offset is
        subtracted, then divided by the sum. Second order, which the paper does not fit: divided by
        the response to ``x²/2``, ``y²/2``, ``xy`` or, for the Laplacian, ``(x² + y²)/4``. A
        constant added to a filter therefore changes nothing for ``"smooth"`` and ``"sharpen"``
        only; from derivatives, subtract it first.

        Args:
            filters: ``(n, k, k)``.

        Returns:
            ``(n, k, k)``.

        Raises:
            KeyFiltersError: a filter has no such response, or its sum is 0.

        >>> bump = torch.tensor([[[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]])
        >>> operator("smooth").normalize(bump).tolist()
        [[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]
        """
        p, q = self.order
        if p + q == 0:
            filters = filters - dc_offset(filters)[:, None, None]
            response, what = filters.sum((1, 2)), "its sum, less the DC offset, is 0"
        elif self.isotropic:
            response = monomial_response(filters, (2, 0)) + monomial_response(filters, (0, 2))
            response, what = response / 2, "its response to (x² + y²)/4 is 0"
        else:
            response = monomial_response(filters, (p, q))
            what = f"its response to {('', 'x', 'x²')[p]}{('', 'y', 'y²')[q]} is 0"
        if not bool((response.abs() > 1e-9 * filters.abs().sum((1, 2))).all()):
            raise KeyFiltersError(f"the operator {self.name!r} does not describe it, {what}")
        return filters / response[:, None, None]


_ORDER = ("dx", "dy", "dx+", "dx-", "dy+", "dy-", "dxx", "dyy", "dxy", "laplacian", "sharpen",
          "smooth")  # fmt: skip
OPERATORS: dict[str, Operator] = {name: Operator(BY_OPERATOR[name]) for name in _ORDER}


def operator(name: str) -> Operator:
    """Return an operator by its name.

    Raises:
        KeyFiltersError: there is none; the nearest names, or else all names, are listed.

    >>> operator("dx-").family.formula
    'δx− T(σx, σy)'
    """
    if name in OPERATORS:
        return OPERATORS[name]
    tail = nearest(name, OPERATORS) or f"; expected one of {', '.join(OPERATORS)}"
    raise KeyFiltersError(f"no operator is called {name!r}{tail}")


def normalized_filters(
    filters: ArrayLike | Tensor, operators: Sequence[str]
) -> tuple[Tensor, list[Operator]]:
    """Return filters at the amplitude of their operators, and the operators.

    Args:
        filters: ``(n, k, k)`` with k odd, at least 3.
        operators: n names.

    Returns:
        ``(n, k, k)`` float64, each filter as `Operator.normalize` returns it, and n operators.

    Raises:
        KeyFiltersError: bad shapes, filters that are constant or not finite, an unknown operator,
            or a filter that its operator does not describe; the message counts filters from 1.
    """
    array = _checked(filters)
    if isinstance(operators, str) or len(operators) != len(array):
        got = f"the one text {operators!r}" if isinstance(operators, str) else len(operators)
        raise KeyFiltersError(f"expected {len(array)} operators, one a filter, got {got}")
    forms = [operator(name) for name in operators]
    result = torch.empty_like(array)
    for i, form in enumerate(forms):
        try:
            result[i] = form.normalize(array[i : i + 1])[0]
        except KeyFiltersError as error:
            raise KeyFiltersError(f"filter {i + 1} cannot be fitted: {error}") from error
    return result, forms


def _checked(filters: ArrayLike | Tensor) -> Tensor:
    try:
        if isinstance(filters, Tensor):
            given = filters.detach().cpu()
            filters = (given if given.is_complex() else given.double()).numpy()
        if np.iscomplexobj(filters):
            raise TypeError("they are complex")
        array = torch.from_numpy(np.array(filters, dtype=np.float64, order="C"))
    except (ValueError, TypeError) as error:
        raise KeyFiltersError(f"filters are not an array of real numbers: {error}") from error
    shape = tuple(array.shape)
    if array.ndim != 3 or shape[1] != shape[2] or shape[1] < 3 or shape[1] % 2 == 0:
        raise KeyFiltersError(
            f"expected filters of shape (n, k, k) with k odd and at least 3, got {shape}"
        )
    if not len(array):
        raise KeyFiltersError("expected at least one filter, got none")
    for i, f in enumerate(array, start=1):
        if not bool(torch.isfinite(f).all()):
            raise KeyFiltersError(f"filter {i} holds a number that is not finite")
        if float(f.max() - f.min()) <= 1e-12 * float(f.abs().max()):
            raise KeyFiltersError(f"filter {i} is constant; nothing can be fitted to it")
    return array

"""Drawing idealised filters: separable products of differences of the discrete Gaussian, and sums.

The kernel is ``T = T(x; σx²) T(y; σy²)`` (lindeberg2026modelling), cut to the window without
renormalisation; operators are applied before the cut.

Two conventions are ours. A window of even side has no centre tap: there T is averaged over
neighbouring taps, which centres it half-way between them and adds ¼ to its variance, so that the T
averaged has the variance σ² − ¼ and σ stays the standard deviation of what is drawn; below σ = ½
nothing changes any more. A window of one row holds the sum of a form over all rows, in which
smoothing along y drops out and a difference along y vanishes; a window of one column likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keyfilters.scalespace import difference, discrete_gaussian
from keyfilters.scalespace.differences import OPERATORS
from keyfilters.sizes import Window

if TYPE_CHECKING:
    from keyfilters.receptive_fields.forms import Term

__all__ = ["BETWEEN", "draw_cut_terms", "draw_terms"]

BETWEEN = 0.25  # variance of the mean of two neighbouring taps
MARGIN = 2  # taps beyond the window that two operators, one after the other, reach


def draw_terms(terms: Sequence[Term], parameters: Mapping[str, Tensor], size: Window) -> Tensor:
    """Draw a sum of products.

    Args:
        terms: the products.
        parameters: ``(n,)`` values of every parameter that the terms name.
        size: window ``(k_y, k_x)`` in taps.

    Returns:
        ``(n, k_y, k_x)``, row 0 on top.
    """
    kernels: dict[tuple[str, int], Tensor] = {}

    def axis(scale: str, operators: str, taps: int) -> Tensor:
        if taps == 1:
            return _sum(operators, parameters)
        if (scale, taps) not in kernels:
            variance = _variance(scale, parameters, taps)
            kernels[scale, taps] = discrete_gaussian(variance, taps // 2 + MARGIN)
        kernel, left = kernels[scale, taps], MARGIN
        for operator in operators.split():
            if operator != "0":
                kernel, left = difference(kernel, operator), left - 1
        kernel = kernel[..., left : kernel.shape[-1] - left]
        return kernel if taps % 2 else (kernel[..., 1:] + kernel[..., :-1]) / 2

    drawn: Tensor | float = 0.0
    for x, y, weight, (scale_x, scale_y) in terms:
        along_x = axis(scale_x, x, size[1])
        along_x = along_x * (weight(parameters)[:, None] if callable(weight) else weight)
        along_y = axis(scale_y, y, size[0]).flip(-1)  # y points up, rows run down
        drawn = drawn + along_y[:, :, None] * along_x[:, None, :]
    assert isinstance(drawn, Tensor)
    return drawn


def draw_cut_terms(terms: Sequence[Term], parameters: Mapping[str, Tensor], size: Window) -> Tensor:
    """Draw a sum of products with the borders of the published analysis (lindeberg2026modelling).

    T is cut to the window first. Its outermost tap is then repeated for a first difference, and 0
    is taken beyond the window for a second one.

    Args:
        terms: the products.
        parameters: ``(n,)`` values of every parameter that the terms name.
        size: window ``(k_y, k_x)`` in taps.
    """

    def axis(scale: str, operator: str, taps: int) -> Tensor:
        if taps == 1:
            return _sum(operator, parameters)
        kernel = discrete_gaussian(_variance(scale, parameters, taps), taps // 2)
        kernel = kernel if taps % 2 else (kernel[..., 1:] + kernel[..., :-1]) / 2
        if operator == "0":
            return kernel
        edge = kernel[..., :1]  # T is even, so that both ends are equal
        outside = torch.zeros_like(edge) if operator == "dd" else edge
        return difference(torch.cat([outside, kernel, outside], dim=-1), operator)

    products = []
    for x, y, weight, (scale_x, scale_y) in terms:
        along_y, along_x = axis(scale_y, y, size[0]).flip(-1), axis(scale_x, x, size[1])
        product = along_y[:, :, None] * along_x[:, None, :]
        factor = weight(parameters)[:, None, None] if callable(weight) else weight
        products.append(factor * product)
    return torch.stack(products).sum(0)


def _variance(scale: str, parameters: Mapping[str, Tensor], taps: int) -> Tensor:
    """Variance of T along an axis of so many taps, before it is averaged."""
    if not scale:
        return torch.zeros_like(next(iter(parameters.values())))
    variance = parameters[scale] ** 2
    return variance if taps % 2 else (variance - BETWEEN).clamp(min=0)


def _sum(operators: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """Sum over all taps of operators applied to T, ``(n, 1)``: 1 for means, 0 for differences."""
    shown = all(abs(sum(OPERATORS[name])) > 0.5 for name in operators.split())
    return torch.full_like(next(iter(parameters.values())), float(shown))[:, None]

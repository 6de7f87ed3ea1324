"""Drawing idealised filters: separable products of differences of the discrete Gaussian, and sums.

The kernel is ``T = T(x; σx²) T(y; σy²)`` (lindeberg2026modelling), cut to the window without
renormalisation; operators are applied before the cut. A window of even size has no centre tap:
there T is averaged over neighbouring taps, which centres it between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keyfilters.scalespace import difference, discrete_gaussian

if TYPE_CHECKING:
    from keyfilters.receptive_fields.forms import Term

__all__ = ["draw_cut_terms", "draw_terms"]

MARGIN = 2  # taps beyond the window that two operators, one after the other, reach


def draw_terms(
    terms: Sequence[Term], parameters: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
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
        if (scale, taps) not in kernels:
            sigma = (
                parameters[scale] if scale else torch.zeros_like(next(iter(parameters.values())))
            )
            kernels[scale, taps] = discrete_gaussian(sigma**2, taps // 2 + MARGIN)
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


def draw_cut_terms(terms: Sequence[Term], parameters: Mapping[str, Tensor], size: int) -> Tensor:
    """Draw a sum of products with the borders of the published analysis (lindeberg2026modelling).

    T is cut to the window first. Its outermost tap is then repeated for a first difference, and 0
    is taken beyond the window for a second one.

    Args:
        terms: the products.
        parameters: ``(n,)`` values of every parameter that the terms name.
        size: odd number of taps k along either side.
    """

    def axis(scale: str, operator: str) -> Tensor:
        kernel = discrete_gaussian(_variance(scale, parameters), size // 2)
        if operator == "0":
            return kernel
        edge = kernel[..., :1]  # T is even, so that both ends are equal
        outside = torch.zeros_like(edge) if operator == "dd" else edge
        return difference(torch.cat([outside, kernel, outside], dim=-1), operator)

    products = []
    for x, y, weight, (scale_x, scale_y) in terms:
        product = axis(scale_y, y).flip(-1)[:, :, None] * axis(scale_x, x)[:, None, :]
        factor = weight(parameters)[:, None, None] if callable(weight) else weight
        products.append(factor * product)
    return torch.stack(products).sum(0)


def _variance(scale: str, parameters: Mapping[str, Tensor]) -> Tensor:
    if scale:
        return parameters[scale] ** 2
    return torch.zeros_like(next(iter(parameters.values())))

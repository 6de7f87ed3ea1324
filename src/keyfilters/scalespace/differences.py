"""Difference operators, applied to the untruncated kernel and then cut to the window."""

from __future__ import annotations

import torch
from torch import Tensor

from keyfilters.scalespace.gaussian import discrete_gaussian

__all__ = ["OPERATORS", "difference", "differences_of_gaussian"]

# Weights of f(n-1), f(n), f(n+1). The differences are those of lindeberg2026modelling; the averages
# and shifts move a kernel by half a tap and by a whole one, which off-grid forms are made of.
OPERATORS: dict[str, tuple[float, float, float]] = {
    "0": (0.0, 1.0, 0.0),
    "d": (-0.5, 0.0, 0.5),
    "d+": (0.0, -1.0, 1.0),
    "d-": (-1.0, 1.0, 0.0),
    "dd": (1.0, -2.0, 1.0),
    "average+": (0.0, 0.5, 0.5),
    "average-": (0.5, 0.5, 0.0),
    "shift+": (0.0, 0.0, 1.0),
    "shift-": (1.0, 0.0, 0.0),
    "box": (1 / 3, 1 / 3, 1 / 3),
}


def difference(kernel: Tensor, operator: str) -> Tensor:
    """Apply a difference operator along the last axis and drop the two border taps.

    Centred ``d = (f(n+1) - f(n-1)) / 2``, forward ``d+ = f(n+1) - f(n)``, backward
    ``d- = f(n) - f(n-1)``, second ``dd = f(n+1) - 2 f(n) + f(n-1)``, and ``0``, the identity
    (lindeberg2026modelling); ``average+ = (f(n) + f(n+1)) / 2``, ``shift+ = f(n+1)``, their mirror
    images, and ``box``, the mean of three taps.

    Args:
        kernel: ``(..., n)`` with n at least 3: the window and one tap more on either side.
        operator: a key of `OPERATORS`.

    Returns:
        ``(..., n - 2)``.

    Raises:
        ValueError: unknown operator, or fewer than 3 taps.

    >>> difference(torch.tensor([0.0, 1.0, 4.0, 9.0]), "d+").tolist()
    [3.0, 5.0]
    """
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}; expected one of {', '.join(OPERATORS)}")
    if kernel.shape[-1] < 3:
        raise ValueError(f"expected at least 3 taps along the last axis, got {kernel.shape[-1]}")
    before, here, after = OPERATORS[operator]
    return before * kernel[..., :-2] + here * kernel[..., 1:-1] + after * kernel[..., 2:]


def differences_of_gaussian(
    variance: Tensor | float, radius: int, operators: tuple[str, ...]
) -> Tensor:
    """Return operators applied to the discrete Gaussian, exact up to the window's border.

    Args:
        variance: ``(...)`` in taps squared.
        radius: half-width of the window in taps.
        operators: names as in `difference`.

    Returns:
        ``(len(operators), ..., 2 * radius + 1)``.
    """
    kernel = discrete_gaussian(variance, radius + 1)
    return torch.stack([difference(kernel, operator) for operator in operators])

"""The discrete analogue of the Gaussian kernel, differentiable in its variance."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["discrete_gaussian"]

LARGEST = 25.0  # variance
NODES = 64  # of the full circle, at least


def discrete_gaussian(variance: Tensor | float, radius: int) -> Tensor:
    """Return the discrete Gaussian ``T(n; s) = exp(-s) I_n(s)`` for ``n = -radius .. radius``.

    I_n is the modified Bessel function of integer order (lindeberg2026modelling). The kernel sums
    to 1 and has variance s over all integers; here it is cut to the window and **not**
    renormalised. It is computed without Bessel functions, by the trapezoidal rule on
    ``T(n; s) = 1/pi ∫ exp(s (cos θ - 1)) cos(n θ) dθ`` over [0, π], which converges geometrically
    and is differentiable everywhere, also at s = 0, where T is the unit impulse. Inside
    `torch.compile` and `torch.func.vmap`, where values cannot be seen, variances are not checked
    and those up to 25 are exact.

    Args:
        variance: ``(...)`` tensor or number, ``s = sigma**2`` in taps squared, not negative.
        radius: half-width of the window in taps.

    Returns:
        ``(..., 2 * radius + 1)``, in the dtype and on the device of `variance` (float64 for a
        number).

    Raises:
        ValueError: a variance is negative or not finite, or the radius is negative.

    >>> discrete_gaussian(0.0, radius=1).tolist()
    [0.0, 1.0, 0.0]
    >>> kernel = discrete_gaussian(torch.tensor([0.5, 2.0], dtype=torch.float64), radius=20)
    >>> kernel.shape, kernel.sum(-1).allclose(torch.ones(2, dtype=torch.float64))
    (torch.Size([2, 41]), True)
    """
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    s = variance
    if not isinstance(s, Tensor):
        s = torch.as_tensor(s, dtype=torch.float64, device="cpu")  # whatever the default device
    if not s.is_floating_point():
        s = s.to(torch.float64)
    wide = s.to(torch.promote_types(s.dtype, torch.float32))  # half precision has too few digits
    with torch.autocast(s.device.type, enabled=False):
        kernel = _sums(wide, radius).to(s.dtype)
    # Rounding leaves 1e-17 where the impulse has an exact 0; its gradient is kept.
    impulse = kernel.new_zeros(2 * radius + 1)
    impulse[radius] = 1
    return torch.where((s == 0)[..., None], kernel - kernel.detach() + impulse, kernel)


def _sums(variance: Tensor, radius: int) -> Tensor:
    """Sum over the nodes: over as many as each variance needs, whatever the others are."""
    count = max(NODES, 2 * radius + 32)  # enough for variances up to 1
    if not _is_seen(variance):
        most = radius + 24 + 10 * math.ceil(math.sqrt(LARGEST))
        return _sum(variance, max(count, most + most % 2), radius)
    kernel = _sum(variance, count, radius)
    needed = radius + 24 + 10 * variance.detach().sqrt()  # the error is about T(M - radius; s)
    while bool((more := needed > count).any()):
        count *= 2
        drawn = _sum(variance[more], count, radius)
        kernel = kernel.masked_scatter(more[..., None].expand_as(kernel), drawn)
    return kernel


def _is_seen(variance: Tensor) -> bool:
    """Whether values are known, not so in `torch.compile` and `vmap`; refuse wrong ones."""
    if torch.compiler.is_compiling():
        return False
    try:
        valid = bool((torch.isfinite(variance) & (variance >= 0)).all())
    except RuntimeError:  # inside torch.func.vmap
        return False
    if not valid:
        raise ValueError("variance must be finite and at least 0")
    return True


def _sum(variance: Tensor, count: int, radius: int) -> Tensor:
    """Sum over `count` nodes of the full circle, an even number."""
    if torch.compiler.is_compiling():  # which traces through no cache
        decay, table = _quadrature(count // 2, radius)
    else:
        decay, table = map(torch.from_numpy, _kept_quadrature(count // 2, radius))
    shares = torch.exp(variance[..., None] * decay.to(variance))
    # Not as a product of matrices, whose last bits depend on how many variances there are.
    right = torch.linalg.vecdot(shares[..., None, :], table.T.to(variance))
    return torch.cat([right[..., 1:].flip(-1), right], dim=-1)  # the kernel is even


def _quadrature(half: int, radius: int) -> tuple[Tensor, Tensor]:
    """Exponents ``(half + 1,)`` of the nodes in [0, π], and what each adds to taps 0 to radius.

    By symmetry these nodes are enough, those inside counted twice. The table is in float64, so that
    only the last product is rounded to the variance's own precision.
    """
    theta = torch.arange(half + 1, dtype=torch.float64, device="cpu") * (math.pi / half)
    weight = torch.full_like(theta, 1 / half)
    weight[0] = weight[-1] = 0.5 / half
    offsets = torch.arange(radius + 1, dtype=torch.float64, device="cpu")
    return torch.cos(theta) - 1, weight[:, None] * torch.cos(theta[:, None] * offsets)


@lru_cache(maxsize=64)
def _kept_quadrature(half: int, radius: int) -> tuple[NDArray[np.float64], ...]:
    """Arrays and not tensors, which would keep the mode (such as inference) of the first call."""
    return tuple(x.numpy() for x in _quadrature(half, radius))

"""Drawing rotated anisotropic filters: derivatives of the discrete *affine* Gaussian.

Its kernel with covariance C has the generating function
``φ(u, v) = exp(−C_xx (1 − cos u) − C_yy (1 − cos v) − C_xy sin u sin v)``: the product of two
discrete Gaussians (lindeberg2026modelling) where C is diagonal, and for every C a kernel of sum 1
and covariance exactly C, with |φ| ≤ 1. It is drawn by the trapezoidal rule over all frequencies,
where a difference operator is a factor: i sin u for δx, −2 (1 − cos u) for δxx.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keyfilters.receptive_fields.drawing import BETWEEN
from keyfilters.scalespace.products import times_table
from keyfilters.sizes import tap_offsets

if TYPE_CHECKING:
    from keyfilters.receptive_fields.forms import Term

__all__ = ["draw_rotated"]


def draw_rotated(
    terms: Sequence[Term], parameters: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """Draw a sum of differences of ``T(C)`` with the scale σ along φ and σ⊥ across.

    Args:
        terms: operators along x and y and their weights; the operators are 0, d and dd.
        parameters: ``(n,)`` values of sigma, sigma_across and angle, φ from x, y upwards.
        size: window ``(k_y, k_x)`` in taps.

    Returns:
        ``(n, k_y, k_x)``, row 0 on top.
    """
    spectrum = _spectrum(parameters["sigma"], parameters["sigma_across"], parameters["angle"], size)
    drawn = spectrum.new_zeros(len(spectrum), *size)
    for x, y, weight, _ in terms:
        factor = weight(parameters)[:, None, None] if callable(weight) else weight
        # Sum over the frequencies, along one axis after the other.
        for along_u, along_v in zip(*(t.to(spectrum) for t in _tables(x, y, size)), strict=True):
            drawn += factor * times_table(times_table(spectrum, along_v).mT, along_u)
    return drawn


def _spectrum(sigma: Tensor, across: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Generating function at the nodes, ``(n, nodes of u, nodes of v)``."""
    s, t = sigma**2, across**2
    cos, sin = angle.cos(), angle.sin()
    xx, yy, xy = (
        c[:, None, None]
        for c in (s * cos**2 + t * sin**2, s * sin**2 + t * cos**2, (s - t) * cos * sin)
    )
    # Along an even side, see `keyfilters.receptive_fields.drawing`; σ and σ⊥ are ½ at least there.
    yy, xx = (
        c if k % 2 else (c - BETWEEN).clamp(min=0) for c, k in zip((yy, xx), size, strict=True)
    )
    u, v, _ = (x.to(sigma) for x in _nodes(size))
    exponent = xx * (1 - u.cos())[:, None] + yy * (1 - v.cos())
    return exponent.addcmul_(xy, u.sin()[:, None] * v.sin()).neg_().exp_()


@lru_cache(maxsize=16)
def _nodes(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies u and v, and weights of u, which cover half a circle: v's half mirrors it."""
    # Copies of the kernel M taps away must stay off the window at σ = half its longer side.
    count = max(32, 2 * math.ceil(2.25 * max(size)))
    step = 2 * math.pi / count
    u = torch.arange(count // 2 + 1, dtype=torch.float64) * step
    v = torch.arange(count, dtype=torch.float64) * step
    weight = torch.full_like(u, 2 / count**2)
    weight[0] = weight[-1] = 1 / count**2
    return u, v, weight


@lru_cache(maxsize=96)
def _tables(x: str, y: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What nodes add to taps, ``(2, nodes of u, k_x)`` and ``(2, nodes of v, k_y)``.

    Of the two terms the first is of cosines, the second of sines:
    ``cos(ux + vy) = cos ux cos vy − sin ux sin vy``, and for one difference
    ``−sin(ux + vy) = −sin ux cos vy − cos ux sin vy``. Along an even side the kernel is averaged
    over neighbouring taps, as elsewhere; `_spectrum` takes off the ¼ that this adds.
    """
    u, v, weight = _nodes(size)
    first = (x, y).count("d") == 1  # i times a real factor

    def lift(operator: str, w: Tensor) -> Tensor:
        return {"0": torch.ones_like(w), "d": w.sin(), "dd": -2 * (1 - w.cos())}[operator]

    lift_u, lift_v = weight * lift(x, u), lift(y, v) * (-1 if x == y == "d" else 1)
    if size[1] % 2 == 0:  # the mean of two neighbours
        lift_u = lift_u * (u / 2).cos()
    if size[0] % 2 == 0:
        lift_v = lift_v * (v / 2).cos()
    rows, columns = map(tap_offsets, size)
    phase_u, phase_v = u[:, None] * columns, v[:, None] * -rows
    terms_u = [phase_u.cos(), -phase_u.sin()]
    if first:
        terms_u = [-phase_u.sin(), -phase_u.cos()]
    terms_v = [phase_v.cos(), phase_v.sin()]
    return torch.stack(terms_u) * lift_u[:, None], torch.stack(terms_v) * lift_v[:, None]

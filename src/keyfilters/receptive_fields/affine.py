"""Drawing rotated anisotropic filters: derivatives of the discrete *affine* Gaussian.

Its kernel with covariance C has the generating function
``φ(u, v) = exp(−C_xx (1 − cos u) − C_yy (1 − cos v) − C_xy sin u sin v)``: the product of two
discrete Gaussians (lindeberg2026modelling) where C is diagonal, and for every C a kernel of sum 1
and covariance exactly C, with |φ| ≤ 1. It is drawn by the trapezoidal rule over all frequencies,
where a difference operator is a factor: i sin u for δx, −2 (1 − cos u) for δxx.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["rotated_edge", "rotated_second", "rotated_smoothing"]


def rotated_smoothing(
    sigma: Tensor, across: Tensor, angle: Tensor, size: tuple[int, int]
) -> Tensor:
    """Draw ``T(C)`` with the scale σ along φ and σ⊥ across; all ``(n,)``, φ from x, y upwards."""
    return _draw(_spectrum(sigma, across, angle, size), "0", size)


def rotated_edge(sigma: Tensor, across: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw ``(cos φ δx + sin φ δy) T(C)``; parameters as in `rotated_smoothing`."""
    spectrum = _spectrum(sigma, across, angle, size)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * _draw(spectrum, "x", size) + sin * _draw(spectrum, "y", size)


def rotated_second(sigma: Tensor, across: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw ``(cos² φ δxx + 2 cos φ sin φ δxδy + sin² φ δyy) T(C)``; as in `rotated_smoothing`."""
    spectrum = _spectrum(sigma, across, angle, size)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    xx, xy, yy = (_draw(spectrum, operator, size) for operator in ("xx", "xy", "yy"))
    return cos**2 * xx + 2 * cos * sin * xy + sin**2 * yy


def _spectrum(sigma: Tensor, across: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Generating function at the nodes, ``(n, nodes of u, nodes of v)``."""
    s, t = sigma**2, across**2
    cos, sin = angle.cos(), angle.sin()
    xx, yy, xy = (
        c[:, None, None]
        for c in (s * cos**2 + t * sin**2, s * sin**2 + t * cos**2, (s - t) * cos * sin)
    )
    u, v, _ = (x.to(sigma) for x in _nodes(size))
    exponent = xx * (1 - u.cos())[:, None] + yy * (1 - v.cos())
    return exponent.addcmul_(xy, u.sin()[:, None] * v.sin()).neg_().exp_()


def _draw(spectrum: Tensor, operator: str, size: tuple[int, int]) -> Tensor:
    """Sum over the frequencies, along one axis after the other: ``(n, k_y, k_x)``, row 0 on top."""
    drawn = spectrum.new_zeros(len(spectrum), *size)
    for along_u, along_v in zip(*(x.to(spectrum) for x in _tables(operator, size)), strict=True):
        drawn += (spectrum @ along_v).mT @ along_u
    return drawn


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
def _tables(operator: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What nodes add to taps, ``(2, nodes of u, k_x)`` and ``(2, nodes of v, k_y)``.

    Of the two terms the first is of cosines, the second of sines:
    ``cos(ux + vy) = cos ux cos vy − sin ux sin vy``, and for one difference
    ``−sin(ux + vy) = −sin ux cos vy − cos ux sin vy``. In a window of even side the taps lie
    half-way between those of the kernel, as elsewhere.
    """
    u, v, weight = _nodes(size)
    y, x = ((torch.arange(k, dtype=torch.float64) - (k - 1) / 2) for k in size)
    along_u = {"x": weight * u.sin(), "xx": -2 * weight * (1 - u.cos()), "xy": weight * u.sin()}
    along_v = {"y": v.sin(), "yy": -2 * (1 - v.cos()), "xy": -v.sin()}
    lift_u, lift_v = along_u.get(operator, weight), along_v.get(operator, torch.ones_like(v))
    if size[1] % 2 == 0:  # the mean of two neighbours
        lift_u = lift_u * (u / 2).cos()
    if size[0] % 2 == 0:
        lift_v = lift_v * (v / 2).cos()
    phase_u, phase_v = u[:, None] * x, v[:, None] * -y
    terms_u = [phase_u.cos(), phase_u.sin()]
    if operator in ("x", "y"):
        terms_u = [phase_u.sin(), phase_u.cos()]
    terms_v = [phase_v.cos(), phase_v.sin()]
    signs = (-1.0 if operator in ("x", "y") else 1.0, -1.0)
    table_u = torch.stack([sign * term for sign, term in zip(signs, terms_u, strict=True)])
    return table_u * lift_u[:, None], torch.stack(terms_v) * lift_v[:, None]

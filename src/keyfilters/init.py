"""Initialisers of depthwise weights, one tensor at a time, in the manner of `torch.nn.init`.

Every function ending in ``_`` fills ``weight``, ``(C, 1, k_y, k_x)`` or ``(C, k_y, k_x)`` of any
floating dtype and device, in place and without gradient, and returns it; what does not fit raises a
KeyFiltersError. Random numbers are drawn in float64 on the generator's device (the CPU where none
is given) and rounded at the end: a seed gives the same filters for every dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.sizes import Size, Window, as_window, tap_offsets
from keyfilters.threads import one_thread

__all__ = [
    "center_surround_",
    "covariance_",
    "difference_of_gaussians",
    "filter_covariance",
    "impulse_",
    "key_",
    "trunc_normal_",
]

GAMMAS = (1 / 3, 1 / 2, 2 / 3)
EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def difference_of_gaussians(
    size: Size, gamma: float, center: Literal["on", "off"] = "on"
) -> Tensor:
    """Return the centre-surround kernel of On-Off Center-Surround receptive fields.

    ``w = A_c exp(-r² / (2 γ² σ²)) / γ² + A_s exp(-r² / (2 σ²))`` with centre radius
    ``R = γ (size + 1) / 2`` and ``σ = R / (2 γ) sqrt((1 - γ²) / -ln γ)``, so that the two Gaussians
    are equal at r = R. A_c and A_s are solved so that the taps with r < R sum to +1 and all others
    to -1; single taps beside the border can have the other sign (babaiee2021oocs). A tap at r = R,
    up to 1e-9 of R², belongs to the surround. An even side has its centre between taps. In a window
    that is not square, which is ours, the centre is round and the surround fills the window: `size`
    in R is then the shorter side, of a single row or column its length.

    Args:
        size: taps a side, or ``(k_y, k_x)``; at least 3 along each side, but for a single row or
            column.
        gamma: γ, ratio of centre to surround, in (0, 1).
        center: "on" as above, "off" for its negative.

    Returns:
        ``(k_y, k_x)`` float64 on the CPU, sum 0.

    Raises:
        KeyFiltersError: centre or surround would have no tap, or `center` is neither on nor off.

    >>> round(difference_of_gaussians(7, 1 / 3)[3, 3].item(), 3)
    0.605
    """
    _require(center in ("on", "off"), f'center is {center!r}; type center="on" or center="off"')
    window = as_window(size)
    taps = min(k for k in (*window, max(window)) if k > 1 or max(window) == 1)
    _require(taps >= 3, f"size is {size}; centre and surround need at least 3 taps a side")
    squared, radius, inside = _centre(window, taps, gamma)
    low, high = (2 * math.sqrt(float(r)) / (taps + 1) for r in (squared.min(), squared.max()))
    _require(
        0 < gamma < 1 and bool(inside.any()) and not bool(inside.all()),
        f"gamma is {gamma:g}; with {taps} taps a side, centre and surround both have taps only for "
        f"gamma between {low:.4g} and {min(high, 1):.4g}",
    )
    sigma = radius / (2 * gamma) * math.sqrt((1 - gamma**2) / -math.log(gamma))
    both = torch.stack([torch.exp(-squared / (2 * (g * sigma) ** 2)) / g**2 for g in (gamma, 1.0)])
    sums = torch.stack([both[:, part].sum(1) for part in (inside, ~inside)])
    wanted = torch.tensor([1.0, -1.0] if center == "on" else [-1.0, 1.0], **EXACT)
    return torch.tensordot(torch.linalg.solve(sums, wanted), both, dims=1)


def _centre(window: Window, taps: int, gamma: float) -> tuple[Tensor, float, Tensor]:
    """Return r² of every tap, the radius R of the centre, and which taps lie inside it."""
    y, x = map(tap_offsets, window)
    squared = y[:, None] ** 2 + x**2  # exact, for odd and even sizes
    radius = gamma * (taps + 1) / 2
    # Far above rounding, far below a step of squared.
    return squared, radius, squared < radius**2 * (1 - 1e-9)


@torch.no_grad()
def center_surround_(
    weight: Tensor,
    gammas: Sequence[float] = GAMMAS,
    share: float = 1.0,
    on: float = 0.5,
    std: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Fill a share of the channels with centre-surround kernels (babaiee2024echos).

    ``round(share * C)`` channels, picked at random, get `difference_of_gaussians`; of these
    ``round(on * that)`` are on-centre (halves round up). Among the on-centre and among the
    off-centre filters, the numbers of filters of each γ differ by at most one.

    Args:
        weight: filters of at least 3 taps a side, or of a single row or column.
        gammas: ratios γ; by default those of (1/3, 1/2, 2/3) for which centre and surround both
            have taps: all three in windows of at least 5 taps a side, and in square ones.
        share: share of the channels, 0 to 1; the other channels keep what they have.
        on: on-centre share of these, 0 to 1.
        std: root mean square over the taps of every single filter, which is also their standard
            deviation since the sum is 0. None keeps the raw kernels.
        generator: picks the channels.

    >>> weight = center_surround_(torch.empty(8, 1, 7, 7), std=0.02)
    >>> (weight[:, 0, 3, 3] > 0).sum().item()
    4
    """
    channels, height, width = _check(weight, std)
    shown = 2 not in (height, width) and max(height, width) > 2
    _require(
        shown, f"{height}×{width} filters have no centre and surround; type covariance_ instead"
    )
    _require(len(gammas) > 0, "gammas is empty; type gammas=(0.5,)")
    _require(0 <= share <= 1 and 0 <= on <= 1, f"share {share} and on {on} must lie in [0, 1]")
    count = math.floor(share * channels + 0.5)
    lit = math.floor(on * count + 0.5)
    window = (height, width)
    if tuple(gammas) == GAMMAS:
        parts = [_centre(window, min(k for k in window if k > 1), g)[2] for g in gammas]
        gammas = [g for g, part in zip(gammas, parts, strict=True) if part.any() and not part.all()]
    kernels = _rescaled(torch.stack([difference_of_gaussians(window, g) for g in gammas]), std)
    filters = kernels[[i % len(gammas) for n in (lit, count - lit) for i in range(n)]]
    filters[lit:] *= -1
    picked = torch.randperm(channels, **_source(generator))[:count]
    new = torch.zeros(weight.shape, **EXACT) if weight.is_meta else weight.detach().cpu().double()
    new[picked] = filters.reshape(-1, *weight.shape[1:])
    return _fill_(weight, new)


def filter_covariance(size: Size, variance: float) -> Tensor:
    """Return the closed-form covariance of the taps of a filter.

    With taps p and q in row-major order, ``Z_p = exp(-|p - centre|² / (2 s))`` and
    ``T_pq = exp(-|p - q|² / (2 s))``, distances in T wrapping around the filter's edges, it is the
    symmetric part of ``Z_p (T_pq - Z_q / 2)``: Gaussian blocks that move with the tap, less half a
    block that stays, under a Gaussian mask (trockman2023covariance). Negative eigenvalues, for
    s < 1 and odd sizes below 3 % of the trace, are set to 0. The formula is from memory of the
    paper, not checked against its text or its authors' code.

    Args:
        size: taps a side, or ``(k_y, k_x)``.
        variance: s, in taps squared, greater than 0.

    Returns:
        ``(k_y * k_x, k_y * k_x)`` float64 on the CPU, symmetric and positive semi-definite.

    Raises:
        KeyFiltersError: a size below 1, or a variance that is not finite and positive.

    >>> filter_covariance(7, 0.5).diagonal().argmax().item()  # the centre varies most
    24
    """
    sides = as_window(size)
    valid = 0 < variance < math.inf
    _require(valid, f"variance {variance} must be finite and above 0")
    mask, moving = torch.ones(1, **EXACT), torch.ones(1, 1, **EXACT)
    for k in sides:
        n = torch.arange(k, **EXACT)
        apart = (n[:, None] - n + k // 2) % k - k // 2
        mask = torch.kron(mask, torch.exp(-(tap_offsets(k) ** 2) / (2 * variance)))
        moving = torch.kron(moving, torch.exp(-(apart**2) / (2 * variance)))
    half = mask[:, None] * (moving - mask / 2)
    values, vectors = torch.linalg.eigh((half + half.T) / 2)
    return (vectors * values.clamp(min=0)) @ vectors.T


@torch.no_grad()
@one_thread()  # the root of an eigenvalue near 0 shows how sums were divided
def covariance_(
    weight: Tensor,
    depth: float = 0.5,
    schedule: tuple[float, float, float] = (0.15, 0.25, 1.0),
    std: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Draw every filter from a Gaussian with the covariance of `filter_covariance`.

    The variance of its blocks depends on the depth d: ``s(d) = s_0 + v d + a d² / 2``
    (trockman2023covariance; like the formula, the default schedule is from memory).

    Args:
        weight: filters of any size.
        depth: place of the layer in its network, 0 first to 1 last.
        schedule: ``(s_0, v, a)`` in taps squared.
        std: root of the expected mean square over all taps; one factor scales all filters. None
            keeps the covariance as it is: the centre tap has variance 1/2 or a little more.
        generator: draws the filters.

    >>> covariance_(torch.empty(96, 1, 7, 7), depth=0.25, std=0.02).shape
    torch.Size([96, 1, 7, 7])
    """
    channels, *sides = _check(weight, std)
    _require(0 <= depth <= 1, f"depth is {depth}, it must lie between 0 and 1")
    variance = schedule[0] + schedule[1] * depth + schedule[2] * depth**2 / 2
    values, vectors = torch.linalg.eigh(filter_covariance((sides[0], sides[1]), variance))
    # The symmetric root does not depend on the signs and order that LAPACK gives eigenvectors.
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    root *= 1 if std is None else std / values.mean().sqrt()
    noise = torch.randn(channels, len(root), dtype=torch.float64, **_source(generator))
    return _fill_(weight, noise.cpu() @ root)


@torch.no_grad()
def impulse_(weight: Tensor, scale: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Set one tap of every filter, at a random place, to `scale`, and the others to 0.

    >>> impulse_(torch.empty(4, 1, 3, 5), scale=2.0).sum(dim=(1, 2, 3)).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    channels, height, width = _check(weight)
    place = torch.randint(height * width, (channels,), **_source(generator)).cpu()
    impulses = torch.nn.functional.one_hot(place, height * width).double() * scale
    return _fill_(weight, impulses)


@torch.no_grad()
def key_(
    weight: Tensor,
    filters: Any,
    std: float | None = None,
    signs: bool = True,
    probabilities: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Give every channel one of the key filters, with a random sign (babaiee2025quest).

    Args:
        weight: filters of the keys' size.
        filters: ``(K, k_y, k_x)`` tensor or array, such as the unit filters of a key set.
        std: root mean square over the taps of every single filter, which for centred keys is also
            their standard deviation. None keeps the keys' own scale.
        signs: whether each channel takes the negative with probability 1/2.
        probabilities: ``(K,)`` weights of the keys, not negative; equal where None.
        generator: draws keys and signs.

    >>> key_(torch.empty(4, 1, 1, 2), [[[0.5, -0.5]]], signs=False)[3].tolist()
    [[[0.5, -0.5]]]
    """
    channels, *sides = _check(weight, std)
    keys = torch.asarray(filters, copy=True, requires_grad=False, **EXACT)
    fits = list(keys.shape[1:]) == sides and len(keys) > 0
    _require(fits, f"filters are {tuple(keys.shape)}; the weight needs (K, {sides[0]}, {sides[1]})")
    weights = [1.0] * len(keys) if probabilities is None else probabilities
    chance = torch.asarray(weights, copy=True, requires_grad=False, **EXACT)
    valid = chance.shape == keys.shape[:1] and chance.min() >= 0 and 0 < chance.sum() < math.inf
    _require(valid, f"probabilities must be {len(keys)} numbers >= 0, not all 0; got {weights}")
    source = _source(generator)
    index = torch.multinomial(chance.to(source["device"]), channels, True, generator=generator)
    chosen = _rescaled(keys, std)[index.cpu()]
    if signs:
        chosen = chosen * (1 - 2 * torch.randint(2, (channels, 1, 1), **source).cpu())
    return _fill_(weight, chosen)


@torch.no_grad()
def trunc_normal_(weight: Tensor, std: float = 0.02, generator: Generator | None = None) -> Tensor:
    """Draw all taps from a normal distribution cut at -2 and 2, as ConvNeXt does.

    As in `torch.nn.init.trunc_normal_` the bounds are absolute: a small `std` never meets them.

    >>> trunc_normal_(torch.empty(8, 1, 7, 7)).abs().max().item() < 2
    True
    """
    _check(weight, std)
    drawn = torch.empty(weight.shape, dtype=torch.float64, device=_source(generator)["device"])
    return _fill_(weight, torch.nn.init.trunc_normal_(drawn, std=std, generator=generator))


def _require(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise KeyFiltersError(message)


def _fill_(weight: Tensor, filters: Tensor) -> Tensor:
    """Round filters to the weight's dtype and write them, unless they are too large for it."""
    rounded = filters.reshape(weight.shape).to(dtype=weight.dtype)
    lost = torch.isfinite(filters).all().item() and not torch.isfinite(rounded.float()).all()
    _require(not lost, f"{weight.dtype} cannot hold these filters; type a smaller std or scale")
    return weight.copy_(rounded)


def _check(weight: Tensor, std: float | None = None) -> tuple[int, int, int]:
    """Return (C, k_y, k_x) of a depthwise weight that can be filled with this spread."""
    shape = tuple(weight.shape)
    _require(
        (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)) and 0 not in shape,
        f"the weight has shape {shape}, a depthwise one has (C, 1, k_y, k_x) or (C, k_y, k_x); "
        "type conv.weight of a convolution with groups == in_channels",
    )
    _require(weight.is_floating_point(), f"the weight is {weight.dtype}, not of a floating dtype")
    _require(std is None or 0 < std < math.inf, f"std is {std}; it must be finite and above 0")
    return shape[0], shape[-2], shape[-1]


def _source(generator: Generator | None) -> dict[str, Any]:
    return {"generator": generator, "device": "cpu" if generator is None else generator.device}


def _rescaled(filters: Tensor, std: float | None) -> Tensor:
    """Scale each filter to the root mean square `std` over its taps."""
    rms = filters.square().mean(dim=(1, 2), keepdim=True).sqrt()
    _require(((rms > 0) & rms.isfinite()).all(), "a filter is 0 everywhere or not finite; drop it")
    return filters if std is None else filters * (std / rms)

"""The eight key filters with their published operators and scales (lindeberg2026modelling).

Facts from T. Lindeberg, Z. Babaiee and P. M. Kiasari, "Modelling and analysis of the 8 filters from
the 'master key filters hypothesis' for depthwise-separable deep networks in relation to idealized
receptive fields based on scale-space theory", J. Math. Imaging Vis. 68:22, 2026 (arXiv:2509.12746),
to four decimals. The filters themselves are those of babaiee2025quest and are not needed here.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.receptive_fields.operators import Border, operator
from keyfilters.sizes import Size, as_window, extent
from keyfilters.threads import one_thread_if_forked

__all__ = [
    "PUBLISHED",
    "PUBLISHED_NAMES",
    "PUBLISHED_OPERATORS",
    "published_filters",
    "published_in",
    "published_parameters",
]

PUBLISHED_NAMES = (
    "1 vertical half-grid edge, one side",
    "2 horizontal half-grid edge, one side",
    "3 vertical half-grid edge, other side",
    "4 horizontal half-grid edge, other side",
    "5 horizontal first derivative",
    "6 vertical first derivative",
    "7 sharpening, centre-surround",
    "8 Gaussian smoothing",
)
PUBLISHED_OPERATORS = ("dy+", "dx-", "dy-", "dx+", "dx", "dy", "sharpen", "smooth")

_SHARPEN = (0.6754, 0.5256)
_SHARPEN_L1 = (0.6538, 0.5216)


def _joint(
    shared: float, centred: float, sharpening: tuple[float, float] = _SHARPEN
) -> tuple[tuple[float, float], ...]:
    """One σ for the filters 1 to 4 and 8, one for 5 and 6; (σ, α) for Filter 7."""
    return (*[(shared, shared)] * 4, *[(centred, centred)] * 2, sharpening, (shared, shared))


def _equal(
    *scales: float, sharpening: tuple[float, float] = _SHARPEN
) -> tuple[tuple[float, float], ...]:
    """One σ for each of the filters but 7."""
    pairs = [(sigma, sigma) for sigma in scales]
    return (*pairs[:6], sharpening, *pairs[6:])


# Method -> for each of the eight filters (σx, σy) in taps; for Filter 7 (σ, α).
_SCALES: dict[str, tuple[tuple[float, float], ...]] = {
    "A": ((0.5807, 0.5575), (0.5589, 0.5802), (0.6169, 0.6009), (0.6425, 0.4243),
          (1.0747, 0.8004), (0.7711, 1.0035), _SHARPEN, (0.5521, 0.5453)),
    "A-joint": _joint(0.5629, 0.9032),
    "B": ((0.6445, 0.5829), (0.5858, 0.6440), (0.6898, 0.6740), (0.7560, 0.4596),
          (1.1067, 0.9448), (0.9004, 0.8889), _SHARPEN, (0.6095, 0.6012)),
    "B-joint": _joint(0.6200, 0.9564),
    "C1": ((0.3602, 0.5105), (0.5547, 0.4532), (0.7007, 0.6551), (0.5627, 0.3844),
          (1.3093, 0.8753), (0.9728, 1.1712), _SHARPEN, (0.6366, 0.5866)),
    "C2": _equal(0.4580, 0.4482, 0.6712, 0.4204, 1.3874, 1.0903, 0.6120, sharpening=_SHARPEN_L1),
    "C-joint": _joint(0.6074, 1.1329, _SHARPEN_L1),
    "D1": ((0.4912, 0.7224), (0.5814, 0.5186), (0.4831, 0.5029), (0.5010, 0.0002),
          (1.2997, 1.0043), (0.9843, 1.0738), _SHARPEN, (0.6156, 0.6081)),
    "D2": _equal(0.6440, 0.5580, 0.4952, 0.3796, 1.1934, 1.0383, 0.6119),
    "D-joint": _joint(0.5216, 1.1082),
}  # fmt: skip

PUBLISHED = tuple(f"lindeberg2026-{method}" for method in _SCALES)


def published_parameters(method: str) -> pd.DataFrame:
    """Return the published scales of one fitting method (lindeberg2026modelling).

    Args:
        method: a name of `PUBLISHED`, such as ``"lindeberg2026-B"``, or only the method, ``"B"``.

    Returns:
        One row a filter: filter (1 to 8), operator, sigma_x and sigma_y in taps, alpha (NaN but for
        Filter 7).

    Raises:
        KeyFiltersError: unknown method; the nearest names are listed.

    >>> published_parameters("lindeberg2026-B").loc[6]
    filter            7
    operator    sharpen
    sigma_x      0.6754
    sigma_y      0.6754
    alpha        0.5256
    Name: 6, dtype: object
    """
    scales = _SCALES.get(method.removeprefix("lindeberg2026-"))
    if scales is None:
        tail = (
            nearest(method, (*PUBLISHED, *_SCALES)) or f"; expected one of {', '.join(PUBLISHED)}"
        )
        raise KeyFiltersError(f"no published parameters are called {method!r}{tail}")
    rows = []
    for i, (name, (first, second)) in enumerate(zip(PUBLISHED_OPERATORS, scales, strict=True)):
        sharpens = operator(name).sharpens
        rows.append((i + 1, name, first, *((first, second) if sharpens else (second, np.nan))))
    return pd.DataFrame(rows, columns=["filter", "operator", "sigma_x", "sigma_y", "alpha"])


def published_in(size: Size) -> list[int]:
    """Return which of the eight keys, counted from 0, can be seen in a window; none where none can.

    In one row those that vary along y vanish, and in one column those that vary along x. Windows
    with a side of two taps hold none: they cannot tell the scales.

    >>> published_in(5), published_in((1, 7)), published_in((2, 7))
    ([0, 1, 2, 3, 4, 5, 6, 7], [1, 3, 4, 6, 7], [])
    """
    window = as_window(size)
    if 2 in window or window == (1, 1):
        return []
    hidden = {axis for axis, taps in zip("yx", window, strict=True) if taps == 1}
    return [i for i, name in enumerate(PUBLISHED_OPERATORS) if name[1] not in hidden]


@one_thread_if_forked()
def published_filters(
    method: str, size: Size = 7, *, border: Border = "published"
) -> NDArray[np.float64]:
    """Draw the eight idealised filters at their published scales.

    The formula is that of the paper (lindeberg2026modelling), whose window is 7×7; how it is drawn
    in a window of even side, or of one row or column, is ours: see `Operator.render`.

    Args:
        method: as for `published_parameters`.
        size: taps k along either side, or ``(k_y, k_x)``.
        border: see `Operator.render`.

    Returns:
        ``(8, k_y, k_x)`` in the amplitude of the models, row 0 on top; of one row or column only
        the five of `published_in`.

    Raises:
        KeyFiltersError: unknown method, or a window with a side of two taps or of one tap only.

    >>> published_filters("lindeberg2026-B").shape
    (8, 7, 7)
    """
    table, shown = published_parameters(method), published_in(size)
    if not shown:
        raise KeyFiltersError(
            f"there are no published keys of {extent(as_window(size))}: they need at least 3 taps "
            "a side, or a single row or column; for others type KeySet.random or "
            "KeySet.from_filters"
        )
    drawn = []
    for row in table.iloc[shown].itertuples():
        form = operator(row.operator)
        sigma_x, sigma_y, alpha = torch.tensor([[row.sigma_x], [row.sigma_y], [row.alpha]]).double()
        strength = alpha if form.sharpens else None
        drawn.append(form.render(sigma_x, sigma_y, strength, size=size, border=border)[0])
    return torch.stack(drawn).numpy()

"""What a kernel size is: ``k`` for a square window or ``(k_y, k_x)``, in taps, decided once."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError

__all__ = ["Size", "Window", "as_size", "as_window", "extent", "parse_size", "tap_offsets"]

Window = tuple[int, int]
Size = int | Window


def as_window(size: Any) -> Window:
    """Return a size as ``(k_y, k_x)``.

    Args:
        size: ``k`` or ``(k_y, k_x)``, integers of any kind, at least 1.

    Raises:
        KeyFiltersError: anything else.

    >>> as_window(7), as_window((1, 31))
    ((7, 7), (1, 31))
    """
    try:
        k_y, k_x = (size, size) if not hasattr(size, "__len__") else size
        window = operator.index(k_y), operator.index(k_x)  # of NumPy's integers too
    except (TypeError, ValueError) as error:
        raise KeyFiltersError(
            f"expected a size as k or (k_y, k_x) in taps, got {size!r}"
        ) from error
    if min(window) < 1:
        raise KeyFiltersError(f"expected a size of at least 1 tap a side, got {size!r}")
    return window


def as_size(window: Window) -> Size:
    """Return a window as it is typed: ``k`` where it is square.

    >>> as_size((7, 7)), as_size((1, 7))
    (7, (1, 7))
    """
    return window[0] if window[0] == window[1] else window


def extent(size: Sequence[int]) -> str:
    """Return a kernel size in words.

    >>> extent((1, 7))
    '1×7'
    """
    return "×".join(map(str, size))


def parse_size(text: str) -> Window:
    """Read a size from a command line: ``7`` or ``1x7``, k_y first.

    Raises:
        KeyFiltersError: anything else.

    >>> parse_size("7"), parse_size("1x31"), parse_size("1×31")
    ((7, 7), (1, 31), (1, 31))
    """
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x×*,]\s*(\d{1,6}))?\s*", text)
    if not found:
        raise KeyFiltersError(
            f"expected a kernel size such as 7 or 1x7 (rows x columns), got {text!r}"
        )
    return as_window((int(found[1]), int(found[2] or found[1])))


def tap_offsets(taps: int, like: Tensor | None = None) -> Tensor:
    """Return the coordinates of taps about the middle of their window, ``arange(k) − (k − 1) / 2``.

    An even window has its middle half-way between two taps.

    Args:
        taps: k.
        like: tensor whose dtype and device the result takes; None for float64 on the CPU.

    >>> tap_offsets(3).tolist(), tap_offsets(4).tolist()
    ([-1.0, 0.0, 1.0], [-1.5, -0.5, 0.5, 1.5])
    """
    dtype, device = (torch.float64, "cpu") if like is None else (like.dtype, like.device)
    return torch.arange(taps, dtype=dtype, device=device) - (taps - 1) / 2

"""Filters as small pictures inside HTML, for pages and notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["contact_sheet", "filter_image", "grid_image", "picture_size"]

LEAST = 8  # pixels of the shorter side of a picture
BLANK = 210  # grey of taps that are not finite


def filter_image(taps: NDArray[np.floating[Any]], limit: float | None = None) -> str:
    """Return a filter as a data URI of a PNG with one pixel a tap.

    Blue is negative, white 0, red positive, grey not finite.

    Args:
        taps: ``(k_y, k_x)``, row 0 on top.
        limit: absolute value of the full colours; None for the largest tap.

    >>> filter_image(np.eye(3))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_shade(taps, limit)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_size(size: Sequence[int], side: int) -> dict[str, int]:
    """Return width and height in pixels at which a filter is shown, its longer side `side`.

    A single row or column is at least 8 pixels thick.

    Args:
        size: ``(k_y, k_x)``.
        side: in pixels.

    >>> picture_size((7, 7), 70), picture_size((1, 31), 62)
    ({'width': 70, 'height': 70}, {'width': 62, 'height': 8})
    """
    height, width = (max(LEAST, round(side * k / max(size))) for k in size)
    return {"width": width, "height": height}


def grid_image(
    filters: NDArray[np.floating[Any]], columns: int = 8, pixels: int = 6
) -> NDArray[np.uint8]:
    """Return filters in a grid as one picture, each on its own scale.

    Args:
        filters: ``(n, k_y, k_x)``.
        columns: filters in a row.
        pixels: along either side of a tap.

    Returns:
        ``(height, width, 3)`` red, green and blue; filters are a tap's width apart.
    """
    count, k_y, k_x = filters.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (k_y + 1) - 1, columns * (k_x + 1) - 1, 3), 255, np.uint8)
    for i, taps in enumerate(filters):
        y, x = (i // columns) * (k_y + 1), (i % columns) * (k_x + 1)
        canvas[y : y + k_y, x : x + k_x] = _shade(taps)
    return canvas.repeat(pixels, axis=0).repeat(pixels, axis=1)


def _shade(taps: NDArray[np.floating[Any]], limit: float | None = None) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    finite = np.isfinite(taps)
    values = np.where(finite, taps, 0.0)
    if limit is None:
        limit = float(np.abs(values).max(initial=0.0))
    scaled = values / (2 * limit) + 0.5 if limit > 0 else np.full(taps.shape, 0.5)
    shade = np.array(colormaps["RdBu_r"](scaled, bytes=True)[..., :3])
    shade[~finite] = BLANK
    return shade


def contact_sheet(
    filters: Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]],
    columns: int = 16,
    side: int = 36,
) -> str:
    """Return filters side by side as an HTML element, each on its own scale.

    Args:
        filters: of one or of several sizes ``(k_y, k_x)``.
        columns: filters in a row.
        side: longer side of a filter, in pixels.
    """
    style = (
        f"display:grid;grid-template-columns:repeat({columns},{side}px);gap:3px;"
        "overflow-x:auto;max-width:100%;margin:6px 0"
    )
    images = ""
    for taps in filters:
        shown = picture_size(taps.shape, side)
        images += (
            f'<img src="{filter_image(taps)}" width="{shown["width"]}" height="{shown["height"]}" '
            'alt="filter" '
            'style="image-rendering:pixelated;border:1px solid #d5d8de;margin:0">'
        )
    return f'<div style="{style}">{images}</div>'

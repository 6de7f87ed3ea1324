"""Filters as small pictures inside HTML, for pages and notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["contact_sheet", "filter_image"]

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
    from matplotlib import colormaps
    from PIL import Image

    finite = np.isfinite(taps)
    values = np.where(finite, taps, 0.0)
    if limit is None:
        limit = float(np.abs(values).max(initial=0.0))
    scaled = values / (2 * limit) + 0.5 if limit > 0 else np.full(taps.shape, 0.5)
    shade = np.array(colormaps["RdBu_r"](scaled, bytes=True)[..., :3])
    shade[~finite] = BLANK
    buffer = io.BytesIO()
    Image.fromarray(shade).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(
    filters: Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]],
    columns: int = 16,
    side: int = 36,
) -> str:
    """Return filters side by side as an HTML element, each on its own scale.

    Args:
        filters: of one or of several sizes ``(k_y, k_x)``.
        columns: filters in a row.
        side: of a filter, in pixels.
    """
    style = (
        f"display:grid;grid-template-columns:repeat({columns},{side}px);gap:3px;"
        "overflow-x:auto;max-width:100%;margin:6px 0"
    )
    images = "".join(
        f'<img src="{filter_image(taps)}" width="{side}" height="{side}" alt="filter" '
        'style="image-rendering:pixelated;border:1px solid #d5d8de;margin:0">'
        for taps in filters
    )
    return f'<div style="{style}">{images}</div>'

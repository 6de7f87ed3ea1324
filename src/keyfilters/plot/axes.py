"""Colours of figures, and the axes that they are drawn into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "FILTERS",
    "FRAME",
    "INK",
    "MUTED",
    "NULL",
    "UNCLASSIFIED",
    "make_axes",
    "of_size",
    "percent",
    "plain",
    "thin_ticks",
]

COLOURS = {  # of the kinds of patterns
    "on-centre": "#c8452f",
    "off-centre": "#2f66b0",
    "off-grid centre": "#b565a7",
    "edge": "#2a9d6f",
    "half-edge": "#8cb63c",
    "second derivative": "#e0a021",
    "cross or square": "#3fb4c9",
    "higher derivative": "#7a5fb5",
    "unnamed": "#9a9a9a",
}
UNCLASSIFIED = "#e6e6e6"
FILTERS, NULL, INK, MUTED, FRAME = "#2f66b0", "#22252b", "#22252b", "#737985", "#d5d8de"


def make_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return the axes given, or those of a new figure of so many inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def plain(ax: Axes, legend: bool = False) -> Axes:
    """Take the upper and the right spine off, and write a legend if one is asked for."""
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(fontsize=8, frameon=False)
    return ax


def percent(ax: Axes, axis: str = "y") -> None:
    """Write the numbers of the axis "x" or "y" as percentages."""
    from matplotlib.ticker import PercentFormatter

    (ax.xaxis if axis == "x" else ax.yaxis).set_major_formatter(PercentFormatter(1.0, 0))


def thin_ticks(ax: Axes, labels: list[str], most: int = 10) -> None:
    """Label places 0, 1, … of the x axis, leaving so many out that at most `most` are left."""
    step = -(-len(labels) // most)
    ax.set_xticks(range(0, len(labels), step), labels[::step], fontsize=8.5)


def of_size(atlas: Atlas, size: int | tuple[int, int] | None) -> SizeAtlas:
    """Return the part of an atlas for one kernel size; None for the largest."""
    known = atlas.sizes_
    wanted = max(known) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if wanted not in known:
        held = ", ".join(f"{y}×{x}" for y, x in known)
        raise KeyFiltersError(f"no kernel size {size!r} in this atlas; it has {held}")
    return known[wanted]

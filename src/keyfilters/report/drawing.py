"""How charts of the atlas look, and how they become SVG.

Text stays text, and the same data give the same bytes.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import matplotlib

from keyfilters.plot.axes import COLOURS as KIND_COLOURS
from keyfilters.plot.axes import INK, MUTED, UNCLASSIFIED, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "KIND_COLOURS",
    "MUTED",
    "NULL_COLOURS",
    "UNCLASSIFIED",
    "WIDTH",
    "figure_of",
    "legend_below",
    "percent",
    "single_axes",
    "to_svg",
]

# From weak to strict, the strict ones dark.
NULL_COLOURS = {
    "white": "#d9dce2",
    "tap-permuted": "#b3b8c2",
    "covariance": "#22252b",
    "phase": "#737985",
}

# Colours that a page replaces by its own where it is dark, see page.css.
PAGE_COLOURS = {
    INK: "--ink",
    MUTED: "--muted",
    "#c4c8d0": "--edge",
    "#e1e4ea": "--line",
    "#d5d8de": "--line",
    "#d9dce2": "--null-1",
    "#b3b8c2": "--null-2",
    "#d4d6db": "--blank",
    UNCLASSIFIED: "--blank",
}
MANY = 2000  # bars and points of a chart: those of 300 layers took 0.8 MB of SVG
DPI = 200  # of what is a picture inside a chart
WIDTH = 4.8  # inches: text stays legible where a phone shows the whole chart

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keyfilters",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#c4c8d0",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def figure_of(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many inches and its panels, row by row."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    return figure, list(grid.ravel())


def single_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of one panel."""
    figure, grid = figure_of(width, height, 1, 1)
    return figure, grid[0]


def to_svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page.

    Of axes with more than `MANY` bars and points the data are a picture inside it.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        points = sum(len(line.get_path()) for line in axes.lines)
        areas = sum(len(path) for area in axes.collections for path in area.get_paths())
        if points + areas + len(axes.patches) > MANY:
            for artist in (*axes.lines, *axes.patches, *axes.collections):
                artist.set_rasterized(True)
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)  # the page shows through
    figure.set_dpi(DPI)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # Its font lacks letters of many languages; text stays text, for the fonts of the reader.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        # Unlike `savefig` it draws once; the layout is part of that.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(f": {colour}", f": var({variable}, {colour})")
    return text[text.index("<svg") :]


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the legend of a panel below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)

"""Charts of an experiment, as SVG: every seed, the means, and how the networks learned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.report.drawing import (
    INK,
    KIND_COLOURS,
    MUTED,
    legend_below,
    shorten,
    single_axes,
    to_svg,
)

__all__ = ["dot_plot", "learning_curves", "shade"]

COLOURS = list(KIND_COLOURS.values())[:8]
FEW = 6  # points that are marked one by one
FAR = 4  # as many times further than there are points
STYLES = ("-", "--", ":")  # after eight conditions the colours come again


def dot_plot(runs: pd.DataFrame, conditions: pd.DataFrame, measure: str) -> str:
    """Draw one row a condition: a small dot a seed, above it the mean with its interval.

    Args:
        runs: condition and value, one row a run.
        conditions: condition, mean, low and high, in the order from top to bottom.
        measure: name of the axis.
    """
    names = conditions["condition"].tolist()
    figure, axes = single_axes(6.2, 0.5 * len(names) + 0.9)
    for y, row in enumerate(conditions.itertuples()):
        colour = COLOURS[y % len(COLOURS)]
        values = runs.loc[runs["condition"] == row.condition, "value"].dropna()
        axes.plot(values, np.full(len(values), y + 0.17), "o", color=colour, alpha=0.55,
                  markersize=4.5, markeredgewidth=0)  # fmt: skip
        axes.plot([row.low, row.high], [y - 0.12] * 2, color=colour, linewidth=2.2)
        axes.plot(row.mean, y - 0.12, "o", color=colour, markersize=7.5)
    labels = ["\n".join(textwrap.wrap(shorten(name, 66), 32)) for name in names]
    axes.set_yticks(range(len(names)), labels, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#e1e4ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(measure)
    return to_svg(figure)


def learning_curves(
    title: str,
    curves: Mapping[str, NDArray[np.float64]],
    measure: str,
    across: str = "epoch",
    at: Sequence[float] = (),
) -> str:
    """Draw the mean over the seeds after every epoch, and a band from lowest to highest.

    Args:
        title: above the chart; may be empty.
        curves: condition → ``(seeds, epochs)``; NaN where a run had stopped.
        measure: name of the upright axis.
        across: name of the other.
        at: places of the points on it, by default 1, 2, …; drawn logarithmic where they spread far.
    """
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    figure, axes = single_axes(6.2, 3.6 + 0.12 * len(curves))
    for i, (name, values) in enumerate(curves.items()):
        table = pd.DataFrame(np.asarray(values, dtype=np.float64))
        places = np.asarray(at) if len(at) else np.arange(1, table.shape[1] + 1)
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(places, table.min(), table.max(), color=colour, alpha=0.14, linewidth=0)
        axes.plot(places, table.mean(), STYLES[i // len(COLOURS) % len(STYLES)], color=colour,
                  marker="o" if len(places) <= FEW else None, markersize=4,
                  label=shorten(name, 30))  # fmt: skip
    if len(at) and max(at) > FAR * len(at):
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e1e4ea", linewidth=0.8)
    axes.set_xlabel(across, color=MUTED)
    axes.set_ylabel("\n".join(textwrap.wrap(measure, 40)))
    axes.set_title(title)
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def shade(matrix: pd.DataFrame, middle: float | None = None) -> list[list[str]]:
    """Return a CSS style for each cell of a matrix: background by value, ink that reads on it.

    Args:
        matrix: numbers; NaN stays white.
        middle: where the colours turn from blue (below) over white to red (above); None for one
            scale from white (lowest) to blue (highest).
    """
    import matplotlib

    values = matrix.to_numpy(dtype=np.float64)
    known = values[np.isfinite(values)]
    if middle is None:
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        colours, start = matplotlib.colormaps["Blues"], 0.75
    else:
        reach = float(np.abs(known - middle).max(initial=0.0))
        low, high = middle - reach, middle + reach
        colours, start = matplotlib.colormaps["RdBu_r"], 0.8
    span = high - low if high > low else 1.0
    styles = []
    for row in values:
        cells = []
        for value in row:
            if not np.isfinite(value):
                cells.append("")
                continue
            # The dark ends of the scales are left out, so that the text stays legible.
            at = (value - low) / span if high > low else 0.5
            at = at * start if middle is None else 0.5 + (at - 0.5) * start
            red, green, blue, _ = colours(at)
            ink = INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "#fff"
            hue = matplotlib.colors.to_hex((red, green, blue))
            cells.append(f"background:{hue};color:{ink}")
        styles.append(cells)
    return styles

"""Two models or the steps of a training side by side: over depth, over patterns, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keyfilters.errors import KeyFiltersError
from keyfilters.plot.axes import COLOURS, FILTERS, MUTED, NULL, make_axes, percent, plain
from keyfilters.texts import figure_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keyfilters.inspection import Comparison

__all__ = ["cosines", "coverage", "flow", "steps"]

SHADES = COLOURS | {"unexplained": "#d4d6db"}
SECOND = "#c8452f"
NEAR = 0.99  # median cosine above which what is missing to 1 is drawn


def cosines(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the median cosine of every layer over depth, beside its strictest null.

    If all of them are above 0.99, 1 minus the cosine is drawn.
    """
    ax = make_axes(ax, (6.2, 3.4))
    layers = comparison.layers
    near = bool(layers[["cosine", "null"]].min(axis=None) > NEAR)
    own, null = (1 - layers[x] if near else layers[x] for x in ("cosine", "null"))
    ax.plot(layers["depth"], own, "o-", color=FILTERS, markersize=4, label="the models")
    label = (
        "a change of equal size" if comparison.how == "position" else "as many without structure"
    )
    ax.plot(layers["depth"], null, "--", color=NULL, label=f"{label}, strictest null")
    ax.set_xlabel("relative depth of the layer")
    ax.set_ylabel("1 − median cosine" if near else "median cosine")
    if near:
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        ax.set_ylim(0, None)
    return plain(ax, legend=True)


def coverage(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the share of every layer's filters that one receptive field explains, over depth.

    Raises:
        KeyFiltersError: no kernel size has idealised receptive fields.
    """
    layers = comparison.layers.dropna(subset=["explained_a", "explained_b"])
    if layers.empty:
        raise KeyFiltersError("no receptive fields to draw; they need windows of 3 taps or more")
    ax = make_axes(ax, (6.2, 3.4))
    for side, colour in (("a", FILTERS), ("b", SECOND)):
        ax.plot(layers["depth"], layers[f"explained_{side}"], "o-", color=colour, markersize=4,
                label=figure_label(getattr(comparison, side), 28, end=True))  # fmt: skip
    ax.plot(layers["depth"], layers["explained_null"], "--", color=NULL, label="strictest null")
    ax.set_ylim(0, 1)
    percent(ax)
    ax.set_xlabel("relative depth of the layer")
    ax.set_ylabel("explained, r² ≥ 0.64")
    return plain(ax, legend=True)


def steps(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw how far the filters are from those of the first step, and the share explained.

    Raises:
        KeyFiltersError: the comparison is one of two models.
    """
    table = comparison.steps
    if table is None:
        raise KeyFiltersError("two models were compared; give three steps of a training or more")
    ax = make_axes(ax, (6.2, 3.4))
    cosine = "cosine to the first"
    ax.plot(table["step"], table[cosine], "o-", color=FILTERS, markersize=4, label=cosine)
    if table["explained"].notna().any():
        ax.plot(table["step"], table["explained"], "o-", color=SECOND, markersize=4,
                label="explained, r² ≥ 0.64")  # fmt: skip
        ax.plot(table["step"], table["chance"], "--", color=NULL, label="explained, of the null")
    every = -(-len(table) // 12)
    names = [figure_label(str(name), 18, end=True) for name in table["name"][::every]]
    ax.set_xticks(table["step"][::every], names, rotation=30, ha="right", fontsize=8)
    ax.set_ylim(min(0.0, float(table[cosine].min())), 1.03)
    return plain(ax, legend=True)


def flow(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw which patterns became which: a band as high as the share of the pairs.

    Raises:
        KeyFiltersError: no kernel size has idealised receptive fields.
    """
    table = comparison.flow[comparison.flow["share"] > 0]
    if table.empty:
        raise KeyFiltersError(
            "no patterns to draw; they need windows of at least 3 taps along a side"
        )
    ax = make_axes(ax, (5.6, 4.2))
    order = [k for k in SHADES if k in set(table["from"]) | set(table["to"])]
    left = table.groupby("from")["share"].sum().reindex(order, fill_value=0.0)
    right = table.groupby("to")["share"].sum().reindex(order, fill_value=0.0)
    gap = 0.012
    at = [
        pd.Series(np.concatenate([[0], np.cumsum(side.to_numpy() + gap)[:-1]]), index=order)
        for side in (left, right)
    ]
    for side, start, x, align in ((left, at[0], 0.0, "right"), (right, at[1], 1.0, "left")):
        for kind in order:
            ax.add_patch(_rectangle(x - 0.02, start[kind], 0.04, side[kind], SHADES[kind]))
            if side[kind] >= 0.01:
                edge = x - 0.04 if align == "right" else x + 0.04
                text = f"{kind} {side[kind]:.0%}"
                ax.text(edge, start[kind] + side[kind] / 2, text, ha=align, va="center", fontsize=8)
    used = [start.copy() for start in at]
    t = np.linspace(0, 1, 40)
    ease = 3 * t**2 - 2 * t**3
    for source in order:
        for target in order:
            row = table[(table["from"] == source) & (table["to"] == target)]
            if row.empty:
                continue
            share = float(row["share"].iloc[0])
            low = used[0][source] + (used[1][target] - used[0][source]) * ease
            ax.fill_between(
                0.02 + 0.96 * t, low, low + share, color=SHADES[source], alpha=0.4, lw=0
            )
            used[0][source] += share
            used[1][target] += share
    ax.set_xlim(-0.62, 1.62)
    ax.set_ylim(1 + gap * len(order), -0.06)
    for x, name in enumerate((comparison.a, comparison.b)):
        label = figure_label(name, 28, end=True)
        ax.text(x, -0.02, label, ha="center", va="bottom", fontsize=8, color=MUTED)
    ax.set_axis_off()
    return ax


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, color=colour, lw=0)

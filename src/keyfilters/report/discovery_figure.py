"""What was discovered, in one picture: how few keys are enough, and which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keyfilters.report.drawing import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keyfilters.discovery import Discovery

__all__ = ["discovery_figure"]

KEY_HEIGHT = 1.1  # inches of one row of keys


def discovery_figure(found: Mapping[str, Discovery]) -> Figure:
    """Draw the elimination curve of every kernel size, and below it the keys.

    Keys are drawn from blue (negative) over white (0) to red, those that serve most filters first,
    with the share of the filters that they serve and their idealised receptive field's r².

    Args:
        found: discoveries by a name, such as ``"5×5"``.
    """
    from matplotlib.figure import Figure

    most = max(len(one.keys) for one in found.values())
    height = 2.5 + KEY_HEIGHT * len(found)
    figure = Figure(figsize=(max(3.2 * len(found), 0.85 * most, 5.0), height), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.5, KEY_HEIGHT * len(found)))
    top, below = halves
    charts = np.atleast_1d(top.subplots(1, len(found), sharey=True))
    for axes, (name, one) in zip(charts, found.items(), strict=True):
        curve = one.curve[one.curve["round"] == 1]
        axes.plot(curve["keys"], 100 * curve["value"], color="#0b6e4f", label="candidates")
        if one.nulls:
            label = f"{one.strictest} null"
            axes.plot(curve["keys"], 100 * curve[one.strictest], color=MUTED, ls=":", label=label)
        axes.plot(len(one.keys), 100 * one.value, "D", color=INK, ms=4, label="keys, exchanged")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("number of keys", fontsize=8)
        axes.set_ylim(0, 100)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    charts[0].set_ylabel("variance explained, %", fontsize=8)
    charts[-1].legend(frameon=False, fontsize=7.5, loc="lower right", bbox_to_anchor=(1, 0.12))
    grid = below.subplots(len(found), most, squeeze=False)
    for row, (name, one) in zip(grid, found.items(), strict=True):
        for axes in row:
            axes.axis("off")
        order = np.argsort(-one.models["share"].to_numpy(), kind="stable")
        for axes, i in zip(row, order, strict=False):
            key, model = one.keys.filters[i], one.models.iloc[i]
            limit = np.abs(key).max()
            axes.imshow(key, cmap="RdBu_r", vmin=-limit, vmax=limit)
            text = f"{100 * model['share']:.0f} %"
            if "r2" in one.models:
                text += f", r² {model['r2']:.2f}"
            axes.set_title(text, fontsize=6.5)
        row[0].text(
            -0.2, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure

"""Patterns over depth, and keys as they are discovered."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from keyfilters.clusters import Atlas
from keyfilters.clusters.tables import layer_columns
from keyfilters.errors import KeyFiltersError
from keyfilters.plot.axes import (
    COLOURS,
    FILTERS,
    INK,
    MUTED,
    NULL,
    UNCLASSIFIED,
    make_axes,
    of_size,
    percent,
    plain,
    thin_ticks,
)
from keyfilters.texts import figure_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keyfilters.discovery import Discovery

__all__ = ["depth_profile", "discovery"]


def depth_profile(
    atlas: Atlas,
    size: int | tuple[int, int] | None = None,
    *,
    model: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of each kind of pattern in every layer of a model, over relative depth.

    Args:
        atlas: a fitted atlas.
        size: kernel size; None for the largest.
        model: name of the model; None for the first.
        legend: whether to say which colour is which kind.
        ax: where to draw.

    Raises:
        KeyFiltersError: the atlas has no such kernel size or model.
    """
    one = of_size(atlas, size)
    known = atlas.bank_.models
    name = model or next(x for x in known if len(one.of_models([x])))
    rows = one.of_models([name])
    if not len(rows):
        raise KeyFiltersError(f"no model {name!r} with such filters; there are {', '.join(known)}")
    columns = layer_columns(atlas.bank_, one.rows[rows], ("layer", "depth"))
    kinds = one.patterns.table["kind"].to_numpy()[one.patterns.index[rows]]
    part = pd.DataFrame(columns | {"kind": kinds, "classified": one.classified[rows]})
    layers = part[["layer", "depth"]].drop_duplicates().sort_values("depth")
    ax = make_axes(ax, (6.2, 3.2))
    bottom, places = np.zeros(len(layers)), range(len(layers))
    for kind, colour in COLOURS.items():
        here = part["classified"] & (part["kind"] == kind)
        by_layer = here.groupby(part["layer"], sort=False, observed=True).mean()
        share = by_layer[layers["layer"]].to_numpy()
        if share.any():
            ax.bar(places, share, 0.86, bottom, color=colour, label=kind)
        bottom += share
    ax.bar(places, 1 - bottom, 0.86, bottom, color=UNCLASSIFIED, label="unclassified")
    thin_ticks(ax, [f"{d:.2f}" for d in layers["depth"]])
    ax.set_ylim(0, 1)
    percent(ax)
    ax.set_xlabel("relative depth of the layer")
    ax.set_ylabel("filters of the layer")
    ax.set_title(figure_label(name), fontsize=10, loc="left")
    if legend:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return plain(ax)


def discovery(found: Discovery, *, legend: bool = True, ax: Axes | None = None) -> Axes:
    """Draw the share explained against the number of candidates left, beside every null.

    Args:
        found: of `keyfilters.discover_keys`.
        legend: whether to say which line is which.
        ax: where to draw.
    """
    ax = make_axes(ax, (7.4, 3.6))
    rounds = found.curve["round"].unique()
    for number, style in zip(rounds, cycle(("-", "--", "-.")), strict=False):
        part = found.curve[found.curve["round"] == number]
        colour = FILTERS if number == rounds[0] else "#2a9d6f"
        label = "filters" if len(rounds) == 1 else f"filters, round {number}"
        ax.plot(part["keys"], part["value"], style, color=colour, label=label)
    first = found.curve[found.curve["round"] == rounds[0]]
    for null in found.nulls:
        strict = null == found.strictest
        ax.plot(
            first["keys"], first[null], "--" if strict else ":", color=NULL if strict else MUTED,
            label=f"{null} null{', the strictest' * strict}", linewidth=1.3,
        )  # fmt: skip
    ax.plot(len(found.keys), found.value, "D", color=INK, markersize=5, label="the keys")
    ax.set_ylim(0, 1)
    percent(ax)
    ax.set_xlabel("candidates left")
    ax.set_ylabel("explained")
    if legend:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return plain(ax)

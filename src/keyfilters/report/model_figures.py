"""Charts of the idealised receptive fields of all filters, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.clusters.tables import layer_columns
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields.models import mean_scale
from keyfilters.report.drawing import (
    INK,
    KIND_COLOURS,
    NULL_COLOURS,
    WIDTH,
    legend_below,
    percent,
    single_axes,
    to_svg,
)
from keyfilters.texts import figure_label

NULL_STYLES = {"white": ":", "tap-permuted": ":", "covariance": "--", "phase": "--"}
MOST = 200_000

__all__ = ["explained_depth", "explained_share", "scale_depth"]


def explained_share(atlas: SizeAtlas) -> str:
    """Share of filters explained to at least r², beside the null models."""
    matched = atlas.matched
    assert matched is not None
    figure, axes = single_axes(WIDTH, 3.6)
    levels = np.linspace(0, 1, 201)

    def draw(r2: object, style: str, colour: str, label: str) -> None:
        values = np.sort(np.asarray(r2))
        share = 1 - np.searchsorted(values, levels) / len(values)
        axes.plot(levels, share, style, color=colour, label=label)

    draw(matched.table["r2"], "-", "#2f66b0", "trained filters")
    for null, style in NULL_STYLES.items():
        draw(matched.nulls[null], style, NULL_COLOURS[null], NULLS[null])
    axes.axvline(matched.bar, color=INK, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    percent(axes, "x")
    percent(axes, "y")
    axes.set_xlabel("explained variance r²")
    axes.set_ylabel("share with at least that")
    legend_below(figure, axes, columns=1)
    return to_svg(figure)


def explained_depth(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Share of filters explained in every layer over depth."""
    chosen = atlas.sizes_[size]
    matched = chosen.matched
    assert matched is not None
    places = chosen.of_models(models)
    columns = layer_columns(atlas.bank_, chosen.rows[places], ("model", "depth"))
    good = matched.table["r2"].to_numpy()[places] >= matched.bar
    table = pd.DataFrame(columns | {"good": good})
    figure, axes = single_axes(WIDTH, 3.6)
    palette = list(KIND_COLOURS.values())
    for i, model in enumerate(models):
        part = table[table["model"] == model].groupby("depth")["good"].mean()
        axes.plot(part.index, part, "o-", markersize=4, color=palette[i % len(palette)],
                  label=figure_label(model))  # fmt: skip
    for null, level in matched.claim.nulls.items():
        axes.axhline(
            level, linestyle=NULL_STYLES[null], color=NULL_COLOURS[null], label=NULLS[null]
        )
    axes.set_ylim(0, 1)
    percent(axes, "y")
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel(f"explained to at least {matched.bar:.0%}")
    legend_below(figure, axes, columns=1)
    return to_svg(figure)


def scale_depth(atlas: Atlas, size: tuple[int, int]) -> str:
    """Scale σ of the explained filters over depth, by kind: medians and quartiles of layers.

    Of more than 200,000, so many are drawn at random.
    """
    chosen = atlas.sizes_[size]
    matched = chosen.matched
    assert matched is not None
    table = matched.table.loc[matched.table["r2"] >= matched.bar, ["kind", "sigma_x", "sigma_y"]]
    if len(table) > MOST:
        table = table.sample(MOST, random_state=0).sort_index()
    rows = chosen.rows[table.index]
    table = table.assign(sigma=mean_scale(table), **layer_columns(atlas.bank_, rows, ("depth",)))
    figure, axes = single_axes(WIDTH, 3.6)
    for kind in matched.shares["kind"].head(5):
        groups = table[table["kind"] == kind].groupby("depth")["sigma"]
        enough = groups.size() >= 8
        middle = groups.median()[enough]
        colour = KIND_COLOURS["on-centre" if kind == "centre" else kind]
        axes.plot(middle.index, middle, "o-", markersize=3.5, color=colour, label=kind)
        axes.fill_between(middle.index, groups.quantile(0.25)[enough],
                          groups.quantile(0.75)[enough], color=colour, alpha=0.12)  # fmt: skip
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel("σ in taps, median and quartiles")
    axes.set_ylim(0, None)
    legend_below(figure, axes, columns=3)
    return to_svg(figure)

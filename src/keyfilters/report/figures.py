"""Charts of the patterns and their evidence, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.report.drawing import (
    INK,
    KIND_COLOURS,
    MUTED,
    figure_of,
    legend_below,
    percent,
    shorten,
    single_axes,
    to_svg,
)

__all__ = ["coverage_bars", "depth_profile", "layer_coverage", "rate_curve", "sweep"]

UNCLASSIFIED = "#e6e6e6"
SWEPT = ("filters", "gaussian refit", "tap-permuted refit")
NULL_COLOURS = {"gaussian": "#737985", "tap-permuted": "#b3b8c2"}


def coverage_bars(atlas: SizeAtlas) -> str:
    """Bars: coverage of every method, beside the refitted and the same-prototype nulls."""
    table = atlas.evidence.coverage.iloc[::-1].reset_index(drop=True)
    figure, axes = single_axes(6.2, 0.42 * len(table) + 1.3)
    y = np.arange(len(table))
    axes.barh(y + 0.17, table["coverage"], 0.42, color="#2f66b0", xerr=table["sd"], ecolor=INK,
              label="trained filters (± sd over seeds)")  # fmt: skip
    axes.barh(y - 0.13, table["gaussian refit"], 0.16, color=NULL_COLOURS["gaussian"],
              label="Gaussian filters, method refitted")  # fmt: skip
    axes.barh(y - 0.31, table["tap-permuted refit"], 0.16, color=NULL_COLOURS["tap-permuted"],
              label="taps shuffled, method refitted")  # fmt: skip
    for i, value in enumerate(table["coverage"]):
        axes.text(value + 0.02, i + 0.17, f"{value:.0%}", va="center", fontsize=9)
    axes.set_yticks(y, [_label(row) for row in table.itertuples()], color=INK)
    axes.set_xlim(0, 1.12)
    percent(axes, "x")
    axes.set_xlabel(f"share of filters with dissimilarity below {atlas.threshold:g}")
    legend_below(figure, axes, columns=1)
    return to_svg(figure)


def rate_curve(atlas: SizeAtlas) -> str:
    """Rate–distortion curve: coverage against the number of prototypes."""
    rate = atlas.evidence.rate
    figure, axes = single_axes(6.2, 3.9)
    colours = {"k-means": "#2f66b0", "autoencoder 1-D": "#c8452f", "autoencoder 2-D": "#e0a021",
               "idealised filters": "#2a9d6f"}  # fmt: skip
    for method, colour in colours.items():
        part = rate[(rate["method"] == method) & (rate["data"] == "filters")]
        label = {"k-means": "k-means"}.get(method, f"{method}, best of its own")
        axes.errorbar(part["prototypes"], part["coverage"], part["sd"], color=colour, marker="o",
                      markersize=3.5, label=label)  # fmt: skip
    for data, style in (("gaussian refit", "--"), ("tap-permuted refit", ":")):
        part = rate[(rate["method"] == "k-means") & (rate["data"] == data)]
        axes.plot(part["prototypes"], part["coverage"], style, color=MUTED,
                  label=f"k-means refitted to {_data_label(data)}")  # fmt: skip
    part = rate[(rate["method"] == "idealised filters") & (rate["data"] == "gaussian")]
    axes.plot(part["prototypes"], part["coverage"], "--", color="#2a9d6f", alpha=0.6,
              label="the same idealised filters on Gaussian filters")  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = sorted(rate["prototypes"].unique())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    percent(axes, "y")
    axes.set_xlabel("number of prototypes")
    axes.set_ylabel(f"covered at {atlas.threshold:g}")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def sweep(atlas: SizeAtlas) -> str:
    """Coverage against the threshold, with the nulls."""
    table = atlas.evidence.sweep
    figure, axes = single_axes(6.2, 3.9)
    methods = ("autoencoder 1-D", "k-means 32", "idealised filters")
    for method, colour in zip(methods, ("#c8452f", "#2f66b0", "#2a9d6f"), strict=True):
        for data, style in zip(SWEPT, ("-", "--", ":"), strict=True):
            part = table[(table["method"] == method) & (table["data"] == data)]
            axes.plot(part["threshold"], part["coverage"], style, color=colour,
                      label=method if data == "filters" else None)  # fmt: skip
    axes.plot([], [], "--", color=MUTED, label="the same on Gaussian filters")
    axes.plot([], [], ":", color=MUTED, label="the same on shuffled taps")
    axes.axvline(atlas.threshold, color=INK, linewidth=0.8)
    axes.text(atlas.threshold, 1.03, "threshold", fontsize=9, ha="center", va="bottom")
    axes.set_ylim(0, 1.02)
    percent(axes, "y")
    axes.set_xlabel("threshold on the dissimilarity (1 − cosine)")
    axes.set_ylabel("covered")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def depth_profile(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Stacked bars: share of the kinds of patterns in every layer, one panel a model."""
    chosen = atlas.sizes_[size]
    table = atlas.table_.iloc[chosen.rows]
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    figure, grid = figure_of(6.2 if columns == 1 else 12.6, 2.9 * rows + 0.9, rows, columns)
    for axes, model in zip(grid, models, strict=False):
        part = table[table["model"] == model]
        layers = part[["layer", "depth"]].drop_duplicates().sort_values("depth")
        bottom = np.zeros(len(layers))
        for kind, colour in KIND_COLOURS.items():
            of_kind = part["classified"] & (part["kind"] == kind)
            share = of_kind.groupby(part["layer"], sort=False).mean()[layers["layer"]].to_numpy()
            axes.bar(range(len(layers)), share, 0.86, bottom, color=colour, label=kind)
            bottom += share
        axes.bar(range(len(layers)), 1 - bottom, 0.86, bottom, color=UNCLASSIFIED,
                 label="not classified")  # fmt: skip
        axes.set_xticks(range(len(layers)), [f"{d:.2f}" for d in layers["depth"]], fontsize=8.5)
        if len(layers) > 14:
            axes.set_xticks(axes.get_xticks()[:: len(layers) // 10])
        axes.set_title(shorten(model), loc="left", fontsize=10.5)
        axes.set_ylim(0, 1)
        axes.set_xlabel("relative depth of the layer")
        percent(axes, "y")
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    legend_below(figure, grid[0], columns=5 if columns == 2 else 3)
    return to_svg(figure)


def layer_coverage(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Coverage of every layer over depth, with the same prototypes on the nulls."""
    table = atlas.coverage_
    label = f"{size[0]}×{size[1]}"
    table = table[(table["level"] == "layer") & (table["size"] == label)]
    figure, axes = single_axes(6.2, 3.4)
    palette = list(KIND_COLOURS.values())
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        colour = palette[i % len(palette)]
        axes.plot(part["depth"], part["coverage"], "o-", markersize=4, color=colour,
                  label=shorten(model))  # fmt: skip
        axes.plot(part["depth"], part["tap-permuted"], ":", color=colour)
        axes.plot(part["depth"], part["gaussian"], "--", color=colour, alpha=0.6)
    axes.plot([], [], ":", color=MUTED, label="its filters with taps shuffled")
    axes.plot([], [], "--", color=MUTED, label="Gaussian filters")
    axes.set_ylim(0, 1)
    percent(axes, "y")
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel("classified")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def _label(row: object) -> str:
    count = getattr(row, "prototypes", float("nan"))
    method = str(getattr(row, "method", ""))
    if method.startswith("k-means") or pd.isna(count):
        return method
    return f"{method} ({count:.0f})"


def _data_label(data: str) -> str:
    return {"gaussian refit": "Gaussian filters", "tap-permuted refit": "shuffled taps"}[data]

"""Charts of the atlas as SVG: text stays text, and the same data give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd

from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.clusters.naming import PATTERN_KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "KIND_COLOURS",
    "coverage_bars",
    "depth_profile",
    "explained_depth",
    "explained_share",
    "layer_coverage",
    "rate_curve",
    "scale_depth",
    "sweep",
]

KIND_COLOURS = dict(
    zip(
        PATTERN_KINDS,
        (
            "#c8452f",  # on-centre
            "#2f66b0",  # off-centre
            "#b565a7",  # off-grid centre
            "#2a9d6f",  # edge
            "#8cb63c",  # half-edge
            "#e0a021",  # second derivative
            "#3fb4c9",  # cross or square
            "#7a5fb5",  # higher derivative
            "#9a9a9a",  # unnamed
        ),
        strict=True,
    )
)
UNCLASSIFIED = "#e6e6e6"
INK, MUTED = "#22252b", "#737985"
SWEPT = ("filters", "gaussian refit", "tap-permuted refit")
NULL_COLOURS = {"gaussian": "#737985", "tap-permuted": "#b3b8c2"}

_STYLE = {
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


def coverage_bars(atlas: SizeAtlas) -> str:
    """Bars: coverage of every method, beside the refitted and the same-prototype nulls."""
    table = atlas.evidence.coverage.iloc[::-1].reset_index(drop=True)
    figure, axes = _axes(6.2, 0.42 * len(table) + 1.3)
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
    _percent(axes, "x")
    axes.set_xlabel(f"share of filters with dissimilarity below {atlas.threshold:g}")
    _legend_below(figure, axes, columns=1)
    return _svg(figure)


def rate_curve(atlas: SizeAtlas) -> str:
    """Rate–distortion curve: coverage against the number of prototypes."""
    rate = atlas.evidence.rate
    figure, axes = _axes(6.2, 3.9)
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
    _percent(axes, "y")
    axes.set_xlabel("number of prototypes")
    axes.set_ylabel(f"covered at {atlas.threshold:g}")
    _legend_below(figure, axes, columns=2)
    return _svg(figure)


def sweep(atlas: SizeAtlas) -> str:
    """Coverage against the threshold, with the nulls."""
    table = atlas.evidence.sweep
    figure, axes = _axes(6.2, 3.9)
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
    _percent(axes, "y")
    axes.set_xlabel("threshold on the dissimilarity (1 − cosine)")
    axes.set_ylabel("covered")
    _legend_below(figure, axes, columns=2)
    return _svg(figure)


def depth_profile(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Stacked bars: share of the kinds of patterns in every layer, one panel a model."""
    chosen = atlas.sizes_[size]
    table = atlas.table_.iloc[chosen.rows]
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    figure, grid = _figure(6.2 if columns == 1 else 12.6, 2.9 * rows + 0.9, rows, columns)
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
        axes.set_title(_shorten(model), loc="left", fontsize=10.5)
        axes.set_ylim(0, 1)
        axes.set_xlabel("relative depth of the layer")
        _percent(axes, "y")
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    _legend_below(figure, grid[0], columns=5 if columns == 2 else 3)
    return _svg(figure)


def layer_coverage(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Coverage of every layer over depth, with the same prototypes on the nulls."""
    table = atlas.coverage_
    label = f"{size[0]}×{size[1]}"
    table = table[(table["level"] == "layer") & (table["size"] == label)]
    figure, axes = _axes(6.2, 3.4)
    palette = list(KIND_COLOURS.values())
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        colour = palette[i % len(palette)]
        axes.plot(part["depth"], part["coverage"], "o-", markersize=4, color=colour,
                  label=_shorten(model))  # fmt: skip
        axes.plot(part["depth"], part["tap-permuted"], ":", color=colour)
        axes.plot(part["depth"], part["gaussian"], "--", color=colour, alpha=0.6)
    axes.plot([], [], ":", color=MUTED, label="its filters with taps shuffled")
    axes.plot([], [], "--", color=MUTED, label="Gaussian filters")
    axes.set_ylim(0, 1)
    _percent(axes, "y")
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel("classified")
    _legend_below(figure, axes, columns=2)
    return _svg(figure)


def explained_share(atlas: SizeAtlas) -> str:
    """Share of filters explained to at least r², beside the null models."""
    explained = atlas.explained
    assert explained is not None
    figure, axes = _axes(6.2, 3.6)
    levels = np.linspace(0, 1, 201)

    def draw(r2: object, style: str, colour: str, label: str) -> None:
        values = np.sort(np.asarray(r2))
        share = 1 - np.searchsorted(values, levels) / len(values)
        axes.plot(levels, share, style, color=colour, label=label)

    draw(explained.table["r2"], "-", "#2f66b0", "trained filters")
    draw(explained.nulls["tap-permuted"], ":", MUTED, "the same, taps shuffled")
    draw(explained.nulls["gaussian"], "--", MUTED, "Gaussian filters")
    axes.axvline(explained.bar, color=INK, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _percent(axes, "x")
    _percent(axes, "y")
    axes.set_xlabel("explained variance r²")
    axes.set_ylabel("share of filters with at least that")
    _legend_below(figure, axes, columns=2)
    return _svg(figure)


def explained_depth(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Share of filters explained in every layer over depth."""
    chosen = atlas.sizes_[size]
    explained = chosen.explained
    assert explained is not None
    table = atlas.table_.iloc[chosen.rows].assign(good=lambda t: t["r2"] >= explained.bar)
    figure, axes = _axes(6.2, 3.6)
    palette = list(KIND_COLOURS.values())
    for i, model in enumerate(models):
        part = table[table["model"] == model].groupby("depth")["good"].mean()
        axes.plot(part.index, part, "o-", markersize=4, color=palette[i % len(palette)],
                  label=_shorten(model))  # fmt: skip
    for name, style in (("tap-permuted", ":"), ("gaussian", "--")):
        level = float((explained.nulls[name] >= explained.bar).mean())
        label = {"tap-permuted": "taps shuffled", "gaussian": "Gaussian filters"}[name]
        axes.axhline(level, linestyle=style, color=MUTED, label=label)
    axes.set_ylim(0, 1)
    _percent(axes, "y")
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel(f"explained to at least {explained.bar:.0%}")
    _legend_below(figure, axes, columns=2)
    return _svg(figure)


def scale_depth(atlas: Atlas, size: tuple[int, int]) -> str:
    """Scale σ of the explained filters over depth, by kind: medians and quartiles of layers."""
    chosen = atlas.sizes_[size]
    explained = chosen.explained
    assert explained is not None
    table = atlas.table_.iloc[chosen.rows][["depth"]].reset_index(drop=True)
    table = table.join(explained.table[["kind", "sigma_x", "sigma_y", "r2"]])
    table = table[table["r2"] >= explained.bar]
    table = table.assign(sigma=np.sqrt(table["sigma_x"] * table["sigma_y"]))
    figure, axes = _axes(6.2, 3.6)
    for kind in explained.shares["kind"].head(5):
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
    _legend_below(figure, axes, columns=3)
    return _svg(figure)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    return figure, list(grid.ravel())


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, grid = _figure(width, height, 1, 1)
    return figure, grid[0]


def _svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def _percent(axes: Axes, axis: str) -> None:
    from matplotlib.ticker import PercentFormatter

    (axes.xaxis if axis == "x" else axes.yaxis).set_major_formatter(PercentFormatter(1.0, 0))


def _label(row: object) -> str:
    count = getattr(row, "prototypes", float("nan"))
    method = str(getattr(row, "method", ""))
    if method.startswith("k-means") or pd.isna(count):
        return method
    return f"{method} ({count:.0f})"


def _data_label(data: str) -> str:
    return {"gaussian refit": "Gaussian filters", "tap-permuted refit": "shuffled taps"}[data]


def _shorten(name: str, length: int = 44) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"

"""Charts of the discovery page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters import plot
from keyfilters.report.drawing import (
    INK,
    NULL_COLOURS,
    WIDTH,
    figure_of,
    legend_below,
    percent,
    single_axes,
    to_svg,
)
from keyfilters.texts import figure_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keyfilters.discovery import Discovery
    from keyfilters.discovery.number import KeyNumber

__all__ = ["by_share", "elimination", "gap", "over_depth", "over_models", "quality"]

PANELS = 4  # models drawn layer by layer
BARS = 24  # models in one chart


def elimination(one: Discovery) -> str:
    """Value against the number of candidates left, round by round, beside the nulls."""
    figure, axes = single_axes(WIDTH, 3.9)
    plot.discovery(one, legend=False, ax=axes)
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def gap(number: KeyNumber) -> str:
    """Held-out share that keys explain of the filters and of the covariance null."""
    figure, axes = single_axes(WIDTH, 3.9)
    curve = number.curve
    axes.plot(curve["keys"], curve["held_out"], color="#2f66b0", label="filters, held out")
    axes.plot(curve["keys"], curve["covariance"], "--", color=NULL_COLOURS["covariance"],
              label="covariance null, held out")  # fmt: skip
    axes.plot(curve["keys"], curve["gap"], color="#c8452f", label="gap (± standard error)")
    axes.fill_between(curve["keys"], curve["gap"] - curve["se"], curve["gap"] + curve["se"],
                      color="#c8452f", alpha=0.2)  # fmt: skip
    if number.number is not None:
        axes.axvline(number.number, color=INK, linewidth=0.9)
        axes.text(number.number + 0.6, 0.9, f"{number.number} keys", color=INK, fontsize=9)
    axes.set_ylim(min(0.0, float(curve["gap"].min())), 1)
    axes.set_xlabel("number of keys")
    axes.set_ylabel("explained")
    percent(axes, "y")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def quality(one: Discovery) -> str:
    """Share of the filters whose best key explains at least so much."""
    figure, axes = single_axes(WIDTH, 3.9)
    curves = [(one.served["r2"].to_numpy(), "#2f66b0", "-", "the filters")]
    curves += [(x, NULL_COLOURS[null], ":", f"{null} null") for null, x in one.null_r2.items()]
    for r2, colour, style, label in curves:
        values = np.sort(r2)
        share = 1 - np.arange(len(values)) / len(values)
        some = np.unique(np.linspace(0, len(values) - 1, 400).astype(int))
        axes.plot(values[some], share[some], style, color=colour, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("r² of the filter's best key, at least")
    axes.set_ylabel("filters")
    percent(axes, "y")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def over_depth(one: Discovery) -> str:
    """Share of the filters of each layer that every key serves, for the largest models."""
    models = list(one.served["model"].value_counts().index[:PANELS])
    names = one.models["key"].iloc[by_share(one)].tolist()
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    height = 0.24 * len(names) + 1.2
    figure, grid = figure_of(6.2 * columns, height * rows, rows, columns)
    for axes, model in zip(grid, models, strict=False):
        part = one.served[one.served["model"] == model]
        layers = part.groupby("layer", sort=False)["depth"].first().sort_values(kind="stable")
        shares = pd.crosstab(part["layer"], part["key"], normalize="index")
        shares = shares.reindex(index=layers.index, columns=names, fill_value=0.0)
        _shaded(axes, shares.T.to_numpy(), one)
        step = max(1, len(layers) // 9)
        axes.set_xticks(range(0, len(layers), step), [f"{d:.2f}" for d in layers.iloc[::step]])
        axes.set_xlabel("relative depth of the layer")
        axes.set_title(figure_label(model))
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    return to_svg(figure)


def over_models(one: Discovery) -> str:
    """Share of the filters of each model that every key serves."""
    names = one.models["key"].iloc[by_share(one)].tolist()
    counts = one.served["model"].value_counts()
    models = [m for m in one.served["model"].unique() if m in counts.index[:BARS]]
    shares = pd.crosstab(one.served["model"], one.served["key"], normalize="index")
    shares = shares.reindex(index=models, columns=names, fill_value=0.0)
    figure, axes = single_axes(0.36 * len(models) + 3.4, 0.24 * len(names) + 2.6)
    _shaded(axes, shares.T.to_numpy(), one)
    labels = [figure_label(model, 26) for model in models]
    axes.set_xticks(range(len(models)), labels, rotation=50, ha="right", rotation_mode="anchor")
    return to_svg(figure)


def by_share(one: Discovery) -> NDArray[np.int64]:
    """Return the keys, by number, those that serve most filters first."""
    return np.argsort(-one.models["share"].to_numpy(), kind="stable")


def _shaded(axes: Axes, shares: NDArray[np.floating], one: Discovery) -> None:
    """Draw shares ``(K, columns)``, each row with its number and its key."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(0.3, shares.max()), aspect="auto")
    axes.set_yticks(range(len(shares)), [str(i + 1) for i in range(len(shares))])
    axes.tick_params(axis="y", labelsize=8, pad=22, length=0)
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    for row, i in enumerate(by_share(one)):
        taps = one.keys.filters[i]
        limit = np.abs(taps).max()
        thin = max(1, max(taps.shape) // (3 * min(taps.shape)))  # a row is drawn thicker
        thick = taps.repeat(thin, axis=int(taps.shape[1] < taps.shape[0]))
        drawn = OffsetImage(
            thick, zoom=13 / max(taps.shape), cmap="RdBu_r", interpolation="nearest"
        )
        drawn.image.set_clim(-limit, limit)
        beside = AnnotationBbox(
            drawn,
            (0, row),
            (-11, 0),
            xycoords=("axes fraction", "data"),
            boxcoords="offset points",
            frameon=False,
            pad=0,
        )
        axes.add_artist(beside)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    percent(bar.ax, "y")
    bar.outline.set_visible(False)

"""Charts of the patterns and their evidence, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keyfilters import plot
from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.clusters.evidence import STRICT
from keyfilters.nulls import NULLS
from keyfilters.report.drawing import (
    INK,
    KIND_COLOURS,
    MUTED,
    NULL_COLOURS,
    WIDTH,
    legend_below,
    percent,
    single_axes,
    to_svg,
)
from keyfilters.texts import figure_label

__all__ = ["coverage_bars", "depth_profiles", "layer_coverage", "rate_curve", "sweep"]


def coverage_bars(atlas: SizeAtlas) -> str:
    """Bars: coverage of every method, beside that of the same method on the nulls."""
    claims = atlas.evidence.claims[::-1]
    figure, axes = single_axes(WIDTH, 0.5 * len(claims) + 1.6)
    y = np.arange(len(claims))
    axes.barh(y + 0.22, [c.value for c in claims], 0.34, color="#2f66b0", ecolor=INK,
              xerr=[c.sd for c in claims], label="trained filters (± sd over seeds)")  # fmt: skip
    for i, (null, colour) in enumerate(NULL_COLOURS.items()):
        axes.barh(y - 0.05 - 0.12 * i, [c.nulls[null] for c in claims], 0.11, color=colour,
                  label=NULLS[null])  # fmt: skip
    for i, claim in enumerate(claims):
        axes.text(claim.value + 0.02, i + 0.22, f"{claim.value:.0%}", va="center", fontsize=9)
    axes.set_yticks(y, [_label(c.name, atlas.evidence.prototypes) for c in claims], color=INK)
    axes.set_xlim(0, 1.12)
    percent(axes, "x")
    axes.set_xlabel(f"share of filters with dissimilarity below {atlas.threshold:g}")
    legend_below(figure, axes, columns=1)
    return to_svg(figure)


def rate_curve(atlas: SizeAtlas) -> str:
    """Rate–distortion curve: coverage against the number of prototypes."""
    rate = atlas.evidence.rate
    figure, axes = single_axes(WIDTH, 3.9)
    colours = {"k-means": "#2f66b0", "autoencoder 1-D": "#c8452f", "autoencoder 2-D": "#e0a021",
               "idealised filters": "#2a9d6f"}  # fmt: skip
    for method, colour in colours.items():
        part = rate[(rate["method"] == method) & (rate["data"] == "filters")]
        label = {"k-means": "k-means"}.get(method, f"{method}, best of its own")
        axes.errorbar(part["prototypes"], part["coverage"], part["sd"], color=colour, marker="o",
                      markersize=3.5, label=label)  # fmt: skip
    for null, style in zip(STRICT, ("--", ":"), strict=True):
        for method in ("k-means", "idealised filters"):
            part = rate[(rate["method"] == method) & (rate["data"] == null)]
            axes.plot(part["prototypes"], part["coverage"], style, color=colours[method], alpha=0.7)
        axes.plot([], [], style, color=MUTED, label=f"the same, {null} null")
    axes.set_xscale("log", base=2)
    ticks = sorted(rate["prototypes"].unique())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    percent(axes, "y")
    axes.set_xlabel("number of prototypes")
    axes.set_ylabel(f"covered at {atlas.threshold:g}")
    legend_below(figure, axes, columns=1)
    return to_svg(figure)


def sweep(atlas: SizeAtlas) -> str:
    """Coverage against the threshold, with the nulls."""
    table = atlas.evidence.sweep
    figure, axes = single_axes(WIDTH, 3.9)
    methods = ("autoencoder 1-D", "k-means 32", "idealised filters")
    for method, colour in zip(methods, ("#c8452f", "#2f66b0", "#2a9d6f"), strict=True):
        for data, style in zip(("filters", *STRICT), ("-", "--", ":"), strict=True):
            part = table[(table["method"] == method) & (table["data"] == data)]
            axes.plot(part["threshold"], part["coverage"], style, color=colour,
                      label=method if data == "filters" else None)  # fmt: skip
    for null, style in zip(STRICT, ("--", ":"), strict=True):
        axes.plot([], [], style, color=MUTED, label=f"the same, {null} null")
    axes.axvline(atlas.threshold, color=INK, linewidth=0.8)
    axes.text(atlas.threshold, 1.03, "threshold", fontsize=9, ha="center", va="bottom")
    axes.set_ylim(0, 1.02)
    percent(axes, "y")
    axes.set_xlabel("threshold on the dissimilarity (1 − cosine)")
    axes.set_ylabel("covered")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def depth_profiles(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> list[str]:
    """Stacked bars: share of the kinds of patterns in every layer, one chart a model."""
    charts = []
    for model in models:
        figure, axes = single_axes(WIDTH, 2.9)
        plot.depth_profile(atlas, size, model=model, legend=False, ax=axes)
        charts.append(to_svg(figure))
    return charts


def layer_coverage(atlas: Atlas, size: tuple[int, int], models: Sequence[str]) -> str:
    """Coverage of every layer over depth, and of the strict nulls by a code fitted to them."""
    table = atlas.coverage_
    label = f"{size[0]}×{size[1]}"
    table = table[(table["level"] == "layer") & (table["size"] == label)]
    figure, axes = single_axes(WIDTH, 3.4)
    palette = list(KIND_COLOURS.values())
    for i, model in enumerate(models):
        part = table[table["model"] == model]
        colour = palette[i % len(palette)]
        axes.plot(part["depth"], part["coverage"], "o-", markersize=4, color=colour,
                  label=figure_label(model))  # fmt: skip
        for null, style in zip(STRICT, ("--", ":"), strict=True):
            axes.plot(part["depth"], part[null], style, color=colour, alpha=0.7)
    for null, style in zip(STRICT, ("--", ":"), strict=True):
        axes.plot([], [], style, color=MUTED, label=f"{null} null")
    axes.set_ylim(0, 1)
    percent(axes, "y")
    axes.set_xlabel("relative depth of the layer")
    axes.set_ylabel("classified")
    legend_below(figure, axes, columns=2)
    return to_svg(figure)


def _label(claim: str, prototypes: dict[str, float]) -> str:
    method = claim.removeprefix("coverage, ")
    count = prototypes[method]
    return method if method.startswith("k-means") or np.isnan(count) else f"{method} ({count:.0f})"

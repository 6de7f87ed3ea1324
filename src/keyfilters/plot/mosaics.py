"""Filters side by side: of a layer, beside their models, keys, patterns, before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.clusters import Atlas
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.plot.axes import FRAME, make_axes, of_size
from keyfilters.receptive_fields import has_models
from keyfilters.texts import figure_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keyfilters.inspection import Comparison

__all__ = [
    "changed",
    "code_strip",
    "filters",
    "idealised",
    "keys",
    "mosaic",
    "patterns",
]

LABEL = 12  # characters in a line below a filter
Stack = Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]]


def mosaic(
    filters: Stack,
    *,
    columns: int | None = None,
    scale: str = "own",
    labels: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw filters in a grid.

    Args:
        filters: n filters of one size ``(k_y, k_x)``, row 0 on top.
        columns: filters in a row; None for a grid about twice as wide as high.
        scale: ``"own"``: every filter to its largest absolute tap; ``"shared"``: to that of all.
        labels: n texts to stand below the filters, or none; long ones are broken into lines.
        ax: where to draw.

    Raises:
        KeyFiltersError: no filters, filters of different sizes, or another scale.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    sizes = {np.shape(taps) for taps in filters}
    if len(sizes) != 1 or scale not in ("own", "shared"):
        what = f"scale {scale!r}" if len(sizes) == 1 else f"filters of the sizes {sorted(sizes)}"
        raise KeyFiltersError(
            f"expected filters of one size and the scale 'own' or 'shared', got {what}"
        )
    stack = np.asarray(filters, dtype=np.float64)
    count, (k_y, k_x) = len(stack), stack.shape[1:]
    columns = min(count, columns or max(1, round(np.sqrt(2 * count))))
    rows = -(-count // columns)
    limit = np.nanmax(np.abs(stack), axis=(1, 2), keepdims=True, initial=0.0)
    limit = np.where(limit > 0, limit, 1) if scale == "own" else max(limit.max(), 1e-30)
    labels = ["\n".join(textwrap.fill(line, LABEL) for line in text.split("\n")) for text in labels]
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    gap_y = 1 + round(lines * 0.32 * k_x) if lines else 1
    canvas = np.full((rows * (k_y + gap_y), columns * (k_x + 1)), np.nan)
    width = min(12.0, 0.75 * columns)
    height = width * canvas.shape[0] / canvas.shape[1] + 0.35  # of a title
    ax = make_axes(ax, (width, min(12.0, height)))
    frames = []
    for i, taps in enumerate(stack / limit):
        y, x = (i // columns) * (k_y + gap_y), (i % columns) * (k_x + 1)
        canvas[y : y + k_y, x : x + k_x] = taps
        frames.append(Rectangle((x - 0.5, y - 0.5), k_x, k_y))
        if len(labels):
            ax.text(x + k_x / 2 - 0.5, y + k_y - 0.3, labels[i], ha="center", va="top", fontsize=7)
    ax.imshow(canvas, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=FRAME, linewidth=0.6))
    ax.set_axis_off()
    return ax


def filters(
    bank: FilterBank,
    layer: str | None = None,
    *,
    model: str | None = None,
    most: int = 256,
    scale: str = "own",
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the filters of one layer.

    Args:
        bank: the filters.
        layer: its name; None for the first.
        model: its model, where several have such a layer.
        most: draw at most so many of its filters, from the first on.
        scale: see `mosaic`.
        columns: see `mosaic`.
        ax: where to draw.

    Raises:
        KeyFiltersError: no such layer.
    """
    found = [
        x for x in bank.layers if layer in (None, x.name) and (model is None or x.model == model)
    ]
    if not found:
        names = [x.name for x in bank.layers]
        raise KeyFiltersError(
            f"no layer {layer!r} in {bank!r}{nearest(str(layer), names)}; see bank.layers"
        )
    chosen = found[0]
    ax = mosaic(chosen.weight[:most], columns=columns, scale=scale, ax=ax)
    title = "{}/{}: {:,} filters of {}×{}".format(
        chosen.model, chosen.name, len(chosen.weight), *chosen.size
    )
    ax.set_title(figure_label(title, 60, end=True), fontsize=9)
    return ax


def idealised(
    bank: FilterBank, layer: str | None = None, *, count: int = 12, ax: Axes | None = None
) -> Axes:
    """Draw learned filters, below each its idealised receptive field, and below what is left.

    The field and the residual are scaled to the centred unit form of the filter, so that one colour
    scale holds for all; the label is the share r² that the field explains.

    Args:
        bank: the filters.
        layer: name of the layer; None for the first.
        count: draw the first filters that have a shape.
        ax: where to draw.

    Raises:
        KeyFiltersError: no such layer, or no filter with a shape.
    """
    found = [x for x in bank.layers if layer in (None, x.name)]
    table = bank.unusable()
    bad = set(zip(table["layer"], table["channel"], strict=True))
    kept = [w for x in found[:1] for i, w in enumerate(x.weight) if (x.name, i) not in bad]
    if not kept:
        names = [x.name for x in bank.layers]
        raise KeyFiltersError(
            f"no filters with a shape in a layer {layer!r} of {bank!r}{nearest(str(layer), names)}"
        )
    learned = KeySet.from_filters(np.stack(kept[:count]))
    twins = learned.idealised()[0].filters
    cosine = (learned.filters * twins).sum(axis=(1, 2))
    fitted = cosine[:, None, None] * twins
    rows = np.concatenate([learned.filters, fitted, learned.filters - fitted])
    blank = [""] * (2 * len(fitted))
    labels = [*blank, *(f"r² {c**2:.2f}" for c in cosine)]
    ax = mosaic(rows, columns=len(fitted), scale="shared", labels=labels, ax=ax)
    ax.set_title("learned · idealised · residual, from top to bottom", fontsize=9)
    return ax


def keys(found: KeySet, *, twins: bool = True, ax: Axes | None = None) -> Axes:
    """Draw keys, and below each its idealised receptive field with the share r² it explains.

    Args:
        found: the keys.
        twins: whether to draw the receptive fields; never for windows of less than 3 taps.
        ax: where to draw.
    """
    names = list(found.names)
    if not twins or not has_models(found.window):
        return mosaic(found.filters, columns=min(len(found), 12), labels=names, ax=ax)
    forms = found.idealised()[0].filters
    cosine = (found.filters * forms).sum(axis=(1, 2))
    shown = np.concatenate([found.filters, np.sign(cosine)[:, None, None] * forms])
    labels = [*names, *(f"r² {c**2:.2f}" for c in cosine)]
    return mosaic(shown, columns=len(found), labels=labels, ax=ax)


def patterns(
    atlas: Atlas,
    size: int | tuple[int, int] | None = None,
    *,
    most: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """Draw the patterns of a kernel size with their names and shares, the most frequent first."""
    one = of_size(atlas, size)
    table = one.patterns.table
    order = np.argsort(-table["share"].to_numpy(), kind="stable")[:most]
    labels = [f"{row['name']}\n{row['share']:.0%}" for row in table.iloc[order].to_dict("records")]
    shown = one.patterns.prototypes[order].reshape(-1, *one.size)
    return mosaic(shown, columns=min(len(shown), 8), labels=labels, ax=ax)


def code_strip(
    atlas: Atlas,
    size: int | tuple[int, int] | None = None,
    *,
    count: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """Draw what the one-dimensional code decodes to, from 0 on the left to 1 on the right."""
    one = of_size(atlas, size)
    chosen = np.linspace(0, len(one.decoded) - 1, min(count, len(one.decoded))).round().astype(int)
    ax = mosaic(one.decoded[chosen].reshape(-1, *one.size), columns=len(chosen), ax=ax)
    ax.set_title("decoded filters along the code, 0 to 1", fontsize=9)
    return ax


def changed(comparison: Comparison, *, count: int = 12, ax: Axes | None = None) -> Axes:
    """Draw the filters that changed most: those of the first model above those of the second.

    Raises:
        KeyFiltersError: nothing changed.
    """
    rows = comparison.most_changed[:count]
    size = {np.shape(row["a"]) for row in rows[:1]}
    rows = [row for row in rows if np.shape(row["a"]) in size]
    if not rows:
        raise KeyFiltersError("no filter changed, so that there is nothing to draw")
    shown = [row["a"] for row in rows] + [row["b"] for row in rows]
    labels = [f"ch. {row['channel']}" for row in rows] + [f"{row['cosine']:.2f}" for row in rows]
    return mosaic(shown, columns=len(rows), labels=labels, ax=ax)

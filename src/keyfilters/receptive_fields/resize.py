"""Filters of one network at the kernel size of another: cropped, padded or rendered."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields.families import family
from keyfilters.receptive_fields.matching import has_models, match
from keyfilters.receptive_fields.models import render_models

__all__ = ["RESIZES", "Tables", "crop_or_pad", "idealized_near", "nearest_layers", "resize_filters"]

RESIZES = ("auto", "crop", "pad", "render")
Tables = dict[int, pd.DataFrame]


def nearest_layers(layers: Sequence[Layer], depth: float) -> list[Layer]:
    """Return the layers whose relative depth is nearest to `depth`; several where they tie."""
    apart = [abs(layer.depth - depth) for layer in layers]
    least = min(apart, default=0.0) + 1e-9  # depths of equal layers may differ by rounding
    return [layer for layer, distance in zip(layers, apart, strict=True) if distance <= least]


def crop_or_pad(filters: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Cut filters ``(n, k_y, k_x)`` to the central window `size`, or surround them with zeros.

    The tap ``(k - 1) // 2`` stays the centre, which it is in torch's ``padding="same"`` for odd and
    even k.

    >>> crop_or_pad(np.arange(1.0, 10).reshape(1, 3, 3), (1, 5))[0].tolist()
    [[0.0, 4.0, 5.0, 6.0, 0.0]]
    """
    cut: list[slice] = [slice(None)]
    pad = [(0, 0)]
    for old, new in zip(filters.shape[1:], size, strict=True):
        shift = (new - 1) // 2 - (old - 1) // 2
        start = max(-shift, 0)
        cut.append(slice(start, start + min(old, new)))
        pad.append((max(shift, 0), max(new - old - max(shift, 0), 0)))
    return np.pad(filters[tuple(cut)], pad)


def idealized_near(
    layers: Sequence[Layer],
    depth: float,
    size: tuple[int, int],
    scale_sigma: bool,
    tables: Tables,
) -> NDArray[np.float64]:
    """Render the idealised models of the trained filters nearest in kernel size and depth.

    Layers of the same kernel size go first, where there are any; of every model the nearest layer
    counts, two where they tie. With `scale_sigma` σ grows in proportion to the window. `tables` is
    filled with what `keyfilters.match` finds, by ``id(layer)``.

    Returns:
        ``(n, k_y, k_x)``, without offset, each with the norm that its model has at the trained
        filter's size. Models that vanish in the window are left out.

    Raises:
        KeyFiltersError: no layer has a kernel of three taps along a side, or all models vanish.
    """
    usable = [x for x in layers if has_models(x.size)]
    if not usable:
        raise KeyFiltersError("no layer of the bank has a kernel of at least 3 taps along a side")
    usable = [layer for layer in usable if layer.size == size] or usable
    pool = []
    for model in dict.fromkeys(layer.model for layer in usable):
        for layer in nearest_layers([x for x in usable if x.model == model], depth):
            if id(layer) not in tables:
                tables[id(layer)] = match(layer.weight, null=None).assign(offset=0.0)
            table = tables[id(layer)]
            trained = render_models(table, layer.size)
            if scale_sigma:
                table = _scaled(table, size[0] / layer.size[0], size[1] / layer.size[1])
            drawn = render_models(table, size)
            here, there = (np.sqrt((x**2).sum((1, 2))) for x in (drawn, trained))
            shown = (here > 1e-6 * there) & (there > 0)  # false for NaN
            pool.append(drawn[shown] * (there[shown] / here[shown])[:, None, None])
    if not sum(map(len, pool)):
        raise KeyFiltersError("no model of the nearest filters can be seen in this window")
    return np.concatenate(pool)


def resize_filters(
    filters: NDArray[np.float64], size: tuple[int, int], resize: str
) -> tuple[NDArray[np.float64], str]:
    """Bring filters ``(n, k_y, k_x)`` to another kernel size, and tell how.

    ``"auto"`` crops to fewer taps and pads with zeros to more; ``"crop"`` crops but renders larger
    kernels, ``"pad"`` pads but renders smaller ones, ``"render"`` renders both: the filter's own
    idealised model, ``amplitude · model + offset`` as `keyfilters.match` finds it, at the same
    scales in taps. A filter without a shape is cropped or padded.

    Returns:
        ``(n, *size)``, and one of copied, cropped, padded, "cropped and padded", rendered.

    >>> resize_filters(np.ones((2, 3, 3)), (5, 5), "auto")[1]
    'padded'
    """
    old = filters.shape[1:]
    crops = any(a > b for a, b in zip(old, size, strict=True))
    pads = any(a < b for a, b in zip(old, size, strict=True))
    if not crops and not pads:
        return filters.copy(), "copied"
    exact = crop_or_pad(filters, size)
    how = " and ".join(word for word, does in (("cropped", crops), ("padded", pads)) if does)
    if not (crops and resize in ("pad", "render")) and not (pads and resize in ("crop", "render")):
        return exact, how
    table = match(filters, null=None)
    drawn = render_models(table, size)
    shapeless = np.asarray(np.isnan(drawn).any((1, 2)))
    tail = f", {shapeless.sum()} without a shape {how}" if shapeless.any() else ""
    return np.where(shapeless[:, None, None], exact, drawn), f"rendered{tail}"


def _scaled(table: pd.DataFrame, along_y: float, along_x: float) -> pd.DataFrame:
    """Multiply the scales σ of a table of `match`; those of neither axis by the geometric mean."""
    forms = [family(name).parameters if name else () for name in table["family"]]
    both = math.sqrt(along_y * along_x)
    separable = np.array(["sigma_y" in parameters for parameters in forms])
    strength = np.array(["alpha" in parameters for parameters in forms])
    return table.assign(
        sigma_y=table["sigma_y"] * np.where(separable, along_y, both),
        sigma_x=table["sigma_x"] * np.where(separable, along_x, both),
        second=table["second"] * np.where(strength, 1.0, both),
    )

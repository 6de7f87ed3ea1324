"""Figures of lindeberg2026modelling: scales of the eight filters by ten fitting methods."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields import (
    METHODS,
    PUBLISHED_OPERATORS,
    fit_idealized,
    published_parameters,
    read_filters,
)
from keyfilters.reproduction.figures import Figure, Inputs, Row
from keyfilters.scalespace import spread

__all__ = ["FIGURES"]

PAPER = "lindeberg2026modelling"
COMMAND = "keyfilters reproduce modelling --filters FILE"

# Published scales that a better optimum, or another end of a flat minimum, differs from.
NOTES = {
    ("C2", 7): "the published (σ, α) is not the ℓ1 optimum",
    ("C-joint", 7): "the published (σ, α) is not the ℓ1 optimum",
    ("D1", 4): "σy ends at 0: a boundary optimum",
}


def _learned(inputs: Inputs) -> NDArray[np.float64]:
    filters, _ = read_filters(str(inputs.filters))
    if len(filters) != len(PUBLISHED_OPERATORS):
        raise KeyFiltersError(
            f"{inputs.filters} holds {len(filters)} filters; expected the eight of the paper, in "
            "its order"
        )
    return np.asarray(filters, np.float64)


def _scales(method: str, inputs: Inputs) -> list[Row]:
    inputs.progress(f"fitting by method {method}")
    found = fit_idealized(_learned(inputs), PUBLISHED_OPERATORS, method).table
    published = published_parameters(method)
    rows = []
    for number in range(1, len(found) + 1):
        for column, symbol in (("sigma_x", "σx"), ("sigma_y", "σy"), ("alpha", "α")):
            paper, here = (float(t.loc[number - 1, column]) for t in (published, found))
            if not np.isnan(paper):
                note = NOTES.get((method, number), "")
                rows.append(Row(f"filter {number}, {symbol}", paper, here, note=note))
    return rows


def _separable(inputs: Inputs) -> list[Row]:
    covariance = spread(torch.tensor(_learned(inputs)))[1].numpy()
    mixed = np.abs(covariance[:, 0, 1]) / np.sqrt(covariance[:, 0, 0] * covariance[:, 1, 1])
    return [
        Row(f"filter {n}, |correlation of x and y|", "near 0", float(value))
        for n, value in enumerate(mixed, start=1)
    ]


def _offsets(inputs: Inputs) -> list[Row]:
    mean, _ = spread(torch.tensor(_learned(inputs)))
    along = np.abs(np.asarray(mean)).max(axis=1)
    return [
        Row(f"filter {n}, offset in taps", "0.56 to 0.69" if n < 5 else "< 0.10", float(value))
        for n, value in enumerate(along, start=1)
    ]


FIGURES = [
    Figure(
        PAPER,
        f"scales of method {method}",
        "σx and σy of eight filters, (σ, α) of Filter 7, to four decimals",
        "paper",
        COMMAND,
        ("filters",),
        partial(_scales, method),
    )
    for method in METHODS
] + [
    Figure(PAPER, "separability", "the filters are nearly separable", "paper", COMMAND,
           ("filters",), _separable),
    Figure(PAPER, "half-grid offsets", "filters 1 to 4 lie half a tap off, 5 to 8 do not", "paper",
           COMMAND, ("filters",), _offsets),
    Figure(PAPER, "accuracy with idealised filters", "ConvNeXt V2 Tiny nearly keeps its accuracy "
           "on ImageNet with its depthwise filters replaced and frozen", "paper",
           "keyfilters train recipes/convnextv2-tiny-idealized-frozen.toml", ("imagenet",)),
    Figure(PAPER, "learned scales", "the same with σ learned per channel", "paper",
           "keyfilters train recipes/convnextv2-tiny-idealized-sigma.toml", ("imagenet",)),
]  # fmt: skip

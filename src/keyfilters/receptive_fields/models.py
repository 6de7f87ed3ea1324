"""From a table of `match` back to filters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.receptive_fields.families import family

__all__ = ["mean_scale", "render_models"]


def mean_scale(table: pd.DataFrame) -> pd.Series:
    """Return the geometric mean of sigma_x and sigma_y; the one that is known of a single row."""
    x, y = table["sigma_x"], table["sigma_y"]
    return np.sqrt(x.fillna(y) * y.fillna(x))


def render_models(table: pd.DataFrame, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw the models of a table of `match`, amplitude and offset included: ``(n, k_y, k_x)``.

    A filter without a shape has no model; its row is NaN. So is that of a filter of a single row
    whose model would need a scale across it.
    """
    models = np.full((len(table), *size), np.nan)
    window = (size[0], size[1])
    numbers = {name: table[name].to_numpy() for name in table if table[name].dtype.kind == "f"}
    codes, names = pd.factorize(table["family"])
    for number, name in enumerate(names):
        if not name:
            continue
        form = family(str(name))
        form = form.in_window(window) or form
        rows = np.flatnonzero(codes == number)
        parameters = np.stack([numbers[column][rows] for column in form.columns(window)], axis=1)
        known = np.isfinite(parameters).all(1)  # a scale across a single row is not
        if not known.any():
            continue
        rows = rows[known]
        drawn = form.render(torch.from_numpy(parameters[known]), window).numpy()
        amplitude, offset = (numbers[c][rows, None, None] for c in ("amplitude", "offset"))
        models[rows] = amplitude * drawn + offset
    return models

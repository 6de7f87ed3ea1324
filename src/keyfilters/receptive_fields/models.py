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
    for name, rows in table.groupby("family", sort=False).indices.items():
        if not name:
            continue
        window, part = (size[0], size[1]), table.iloc[rows]
        form = family(str(name))
        form = form.in_window(window) or form
        parameters = torch.tensor(part[form.columns(window)].to_numpy(dtype=np.float64))
        known = parameters.isfinite().all(1).numpy()  # a scale across a single row is not
        if not known.any():
            continue
        rows, part = rows[known], part[known]
        drawn = form.render(parameters[torch.from_numpy(known)], window).numpy()
        amplitude, offset = (part[c].to_numpy()[:, None, None] for c in ("amplitude", "offset"))
        models[rows] = amplitude * drawn + offset
    return models

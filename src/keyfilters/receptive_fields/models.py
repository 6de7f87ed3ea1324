"""From a table of `match` back to filters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.receptive_fields.families import family
from keyfilters.receptive_fields.forms import PARAMETERS

__all__ = ["render_models"]


def render_models(table: pd.DataFrame, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw the models of a table of `match`, amplitude and offset included: ``(n, k_y, k_x)``.

    A filter without a shape has no model; its row is NaN.
    """
    models = np.full((len(table), *size), np.nan)
    for name, rows in table.groupby("family", sort=False).indices.items():
        if not name:
            continue
        form, part = family(str(name)), table.iloc[rows]
        columns = [PARAMETERS[parameter].column for parameter in form.parameters]
        parameters = torch.tensor(part[columns].to_numpy(dtype=np.float64))
        drawn = form.render(parameters, (size[0], size[1])).numpy()
        amplitude, offset = (part[c].to_numpy()[:, None, None] for c in ("amplitude", "offset"))
        models[rows] = amplitude * drawn + offset
    return models

"""Figures of filters, patterns, keys and comparisons, as functions that return matplotlib axes.

Each takes ``ax=``; without it a figure is made with pyplot. Filters are drawn from blue (negative)
over white (0) to red. The pages of `keyfilters.report` draw their charts with the same functions.

>>> import keyfilters as kf, torch
>>> ax = kf.plot.filters(kf.read(torch.nn.Conv2d(24, 24, 5, groups=24)))
>>> ax.get_title()
'Conv2d/: 24 filters of 5×5'
>>> import matplotlib.pyplot as plt
>>> plt.close("all")
"""

from keyfilters.plot.charts import depth_profile, discovery
from keyfilters.plot.comparisons import cosines, coverage, flow, steps
from keyfilters.plot.mosaics import (
    changed,
    code_strip,
    filters,
    idealised,
    keys,
    mosaic,
    patterns,
)

__all__ = [
    "changed",
    "code_strip",
    "cosines",
    "coverage",
    "depth_profile",
    "discovery",
    "filters",
    "flow",
    "idealised",
    "keys",
    "mosaic",
    "patterns",
    "steps",
]

"""Published figures beside those measured here, as one self-contained HTML page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from keyfilters.environment import environment
from keyfilters.report.drawing import WIDTH, single_axes, to_svg
from keyfilters.report.template import render, write_page
from keyfilters.reproduction import Reproduction

__all__ = ["write_reproduction_report"]

FEWEST = 4  # pairs of numbers from which a chart is worth its place


def write_reproduction_report(
    found: Reproduction, path: str | os.PathLike[str], *, command: str = ""
) -> Path:
    """Write the page of what was measured of one paper: a file that opens without a network.

    Args:
        found: of `keyfilters.reproduction.reproduce`.
        path: where to; the folder is made if need be.
        command: what to type for the same result, if it was a command.

    Returns:
        The path written.
    """
    numbers = found.rows[found.rows["difference"].notna()]
    groups: list[dict[str, Any]] = [
        {"name": name, "rows": part.to_dict("records")}
        for name, part in found.rows.groupby("figure", sort=False)
    ]
    html = render(
        "reproduction.html.j2",
        paper=found.paper,
        key=found.figures["paper"].iloc[0],
        figures=found.figures.to_dict("records"),
        measured=int((found.figures["state"] == "measured").sum()),
        groups=groups,
        chart=_chart(numbers) if len(numbers) >= FEWEST else "",
        largest=float(numbers["difference"].abs().max()) if len(numbers) else float("nan"),
        within=float((numbers["difference"].abs() <= 0.005).mean()) if len(numbers) else None,
        command=command,
        run=environment(),
    )
    return write_page(html, path)


def _chart(numbers: pd.DataFrame) -> str:
    """Measured against published, with the diagonal on which both agree."""
    figure, axes = single_axes(WIDTH, 4.4)
    published = numbers["published"].astype(float)
    ends = [min(published.min(), numbers["measured"].min()),
            max(published.max(), numbers["measured"].max())]  # fmt: skip
    axes.plot(ends, ends, linewidth=1, color="0.6", zorder=0)
    axes.plot(published, numbers["measured"], "o", markersize=4, alpha=0.6)
    axes.set_xlabel("published")
    axes.set_ylabel("measured here")
    return to_svg(figure)

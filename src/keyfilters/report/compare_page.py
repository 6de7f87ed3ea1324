"""Two models side by side, as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfilters import plot
from keyfilters.environment import environment
from keyfilters.inspection import Comparison
from keyfilters.inspection.comparison import near_one
from keyfilters.nulls import NULLS
from keyfilters.report.drawing import WIDTH, single_axes, to_svg
from keyfilters.report.template import render, write_page
from keyfilters.thumbnails import filter_image, picture_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_comparison_report"]


def write_comparison_report(
    comparison: Comparison, path: str | os.PathLike[str], *, command: str = ""
) -> Path:
    """Write the page of a comparison: a file that opens without a network.

    Args:
        comparison: of `keyfilters.compare`.
        path: where to; the folder is made if need be.
        command: what to type for the same result, if it was a command.

    Returns:
        The path written.
    """
    flows = not comparison.flow.empty
    html = render(
        "compare.html.j2",
        c=comparison,
        totals=comparison.shown_totals().to_dict("records"),
        nulls=NULLS,
        near_one=near_one,
        layers=comparison.layers.to_dict("records"),
        flow=comparison.flow.head(16).to_dict("records"),
        flow_chart=_svg(lambda ax: plot.flow(comparison, ax=ax), WIDTH, 4.4) if flows else "",
        cosine_chart=_svg(lambda ax: plot.cosines(comparison, ax=ax), WIDTH, 3.4),
        explained_chart=_svg(lambda ax: plot.coverage(comparison, ax=ax), WIDTH, 3.4)
        if flows
        else "",
        step_chart=_svg(lambda ax: plot.steps(comparison, ax=ax), WIDTH, 3.4)
        if comparison.steps is not None
        else "",
        changed=[_card(row) for row in comparison.most_changed],
        steps=None if comparison.steps is None else comparison.steps.to_dict("records"),
        command=command,
        run=environment(),
    )
    return write_page(html, path)


def _svg(draw: Callable[[Axes], Axes], width: float, height: float) -> str:
    figure, axes = single_axes(width, height)
    draw(axes)
    return to_svg(figure)


def _card(row: dict[str, Any]) -> dict[str, Any]:
    shown = {"image_a": filter_image(row["a"]), "image_b": filter_image(row["b"])}
    shown["told"] = near_one(row["cosine"]).replace(" ", "")
    return row | shown | picture_size(row["a"].shape, 64)

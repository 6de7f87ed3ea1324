"""How charts become SVG."""

from __future__ import annotations

import numpy as np
import pytest

from keyfilters.report.drawing import MANY, WIDTH, single_axes, to_svg


@pytest.mark.parametrize("kind", ["points", "areas", "bars"])
def test_charts_of_very_many_elements_stay_small(kind: str) -> None:
    def svg(count: int) -> str:
        figure, axes = single_axes(WIDTH, 3.0)
        places, heights = np.arange(count), np.random.default_rng(0).random(count)
        if kind == "points":
            axes.plot(places, heights, "o-")
        elif kind == "areas":
            axes.fill_between(places, heights)
        else:
            axes.bar(places, heights)
        return to_svg(figure)

    few, many = svg(MANY // 10), svg(5 * MANY)
    assert "<image" not in few and "<image" in many
    assert len(many) < 200_000 and "data:image/png" in many

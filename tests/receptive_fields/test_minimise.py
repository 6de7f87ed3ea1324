"""The search for a global minimum of distances with kinks, in small boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from keyfilters.receptive_fields.minimise import minimise


def test_a_minimum_on_a_kink_that_runs_aslant() -> None:
    def loss(at: Tensor) -> Tensor:  # least at (0.3, 0.6); a valley along x = y / 2
        x, y = at.T
        return 100 * (2 * x - y).abs() + (y - 0.6).abs()

    found = minimise(loss, [(0.0, 1.1), (0.0, 1.3)])
    assert found == pytest.approx([0.3, 0.6], abs=1e-6)


def test_the_deepest_of_several_valleys() -> None:
    def loss(at: Tensor) -> Tensor:
        x = at[:, 0]
        return 1.5 + torch.cos(9 * x) + (x - 2.5).abs()

    grid = torch.linspace(0, 5, 2_000_001, dtype=torch.float64)[:, None]
    [best] = minimise(loss, [(0.0, 5.0)])
    assert best == pytest.approx(float(grid[loss(grid).argmin()]), abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_where_the_distance_is_level_the_smallest_parameter(level: float) -> None:
    def loss(at: Tensor) -> Tensor:  # least between the level and 0.7
        x = at[:, 0]
        return (level - x).clamp_min(0) + (x - 0.7).clamp_min(0)

    [best] = minimise(loss, [(0.0, 1.0)])
    assert best == pytest.approx(level, abs=1e-6)


def test_a_minimum_at_the_end_of_a_range_is_the_end() -> None:
    found = minimise(lambda at: at.square().sum(1), [(0.2, 1.0), (-1.0, 0.0)])
    assert np.array_equal(found, [0.2, 0.0])

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from keyfilters.scalespace import centred_unit, spread


def read_blocks(path: Path) -> np.ndarray:
    blocks = [b.split("\n", 1)[1] for b in path.read_text().strip().split("\n\n")]
    return np.stack([np.loadtxt(block.splitlines()) for block in blocks])


def test_against_published_figures(shared: Path) -> None:
    filters = read_blocks(shared / "master_key_filters_babaiee2025.txt")
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    mean, covariance = spread(torch.tensor(filters))
    for i, row in enumerate(reference["spread_of_absolute_values"]):
        np.testing.assert_allclose(mean[i], row["abs_mean_xy"], atol=1e-6)
        np.testing.assert_allclose(covariance[i], row["abs_covariance"], atol=1e-6)


def test_axes_point_right_and_up() -> None:
    corner = torch.zeros(1, 3, 5)
    corner[0, 0, 4] = -2.0
    mean, covariance = spread(corner)
    assert mean.tolist() == [[2.0, 1.0]]
    assert not covariance.any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(n, k_y, k_x\)"):
        spread(torch.ones(3, 3))
    with pytest.raises(ValueError, match="no spread"):
        spread(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="filter 1 is constant"):
        centred_unit(np.stack([np.eye(3), np.ones((3, 3))]))
    with pytest.raises(ValueError, match="filter 0 is constant or not finite"):
        centred_unit(np.full((1, 3, 3), np.nan))


def test_centred_unit_form_forgets_scale_and_offset() -> None:
    filters = np.random.default_rng(0).normal(size=(20, 5, 5))
    np.testing.assert_allclose(
        centred_unit(filters), centred_unit(3e-5 * filters + 0.01), atol=1e-5
    )
    np.testing.assert_allclose(centred_unit(filters), -centred_unit(-2 * filters), atol=1e-6)

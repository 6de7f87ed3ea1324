from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from keyfilters.errors import KeyFiltersError
from keyfilters.scalespace import (
    centred_unit,
    dc_offset,
    half_grid_offset,
    monomial_response,
    separability_index,
    spread,
)


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
    with pytest.raises(ValueError, match="filter 0 is non-finite"):
        centred_unit(np.full((1, 3, 3), np.nan))


def test_centred_unit_form_forgets_scale_and_offset() -> None:
    filters = np.random.default_rng(0).normal(size=(20, 5, 5))
    np.testing.assert_allclose(
        centred_unit(filters), centred_unit(3e-5 * filters + 0.01), atol=1e-5
    )
    np.testing.assert_allclose(centred_unit(filters), -centred_unit(-2 * filters), atol=1e-6)


def test_monomials_and_offsets_against_published_figures(shared: Path) -> None:
    filters = torch.tensor(read_blocks(shared / "master_key_filters_babaiee2025.txt"))
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    for order in ((0, 0), (1, 0), (0, 1)):
        response = monomial_response(filters, order)
        published = [row[f"order_{order[0]}{order[1]}"] for row in reference["monomial_response"]]
        np.testing.assert_allclose(response, published, atol=1e-6)
    offset = half_grid_offset(filters)
    assert ((offset[:4] > 0.55) & (offset[:4] < 0.70)).all() and (offset[4:] < 0.10).all()
    assert (separability_index(filters) < 0.05).all()


def test_dc_offset_against_published_figures(shared: Path) -> None:
    """The published offsets are 8e-6 and 2e-5 off their optimum, which is a kink at a tap."""
    filters = torch.tensor(read_blocks(shared / "master_key_filters_babaiee2025.txt"))
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    ours = dc_offset(filters)
    for i in (6, 7):
        theirs = reference["dc_offset"][str(i + 1)]
        assert ours[i].item() == pytest.approx(theirs, abs=2e-5)
        assert area(filters[i], ours[i].item()) < area(filters[i], theirs)
        assert (filters[i] - ours[i]).abs().min() < 1e-12


def area(filters: torch.Tensor, level: float) -> float:
    _, covariance = spread(filters[None] - level)
    return float(torch.linalg.det(covariance[0]).clamp(min=0).sqrt())


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (9, 9), (3, 7)])
def test_dc_offset_is_the_global_minimum(size: tuple[int, int]) -> None:
    filters = torch.tensor(np.random.default_rng(0).normal(size=(12, *size)))
    for f, level in zip(filters, dc_offset(filters).tolist(), strict=True):
        levels = torch.linspace(float(f.min()), float(f.max()), 20001, dtype=torch.float64)
        _, covariance = spread(f - levels[:, None, None])
        areas = torch.linalg.det(covariance).clamp(min=0).sqrt()
        assert area(f, level) <= areas.min() + 1e-9
    moved = dc_offset(3 * filters - 5)
    torch.testing.assert_close(moved, 3 * dc_offset(filters) - 5, atol=1e-6, rtol=0)
    torch.testing.assert_close(dc_offset(-filters), -dc_offset(filters), atol=1e-6, rtol=0)


def test_dc_offset_of_few_taps_by_hand() -> None:
    spot = torch.tensor([[[2.0, 2, 2], [2, 9, 2], [2, 2, 2]]])
    assert dc_offset(spot).tolist() == [2.0] and dc_offset(-spot).tolist() == [-2.0]
    two = torch.tensor([[[0.0, 0, 0], [0, 1, 3], [0, 0, 0]], [[5.0, 5, 5], [5, 5, 4], [1, 5, 5]]])
    # What stands on a line has no area: the lowest of the levels that leave a line is taken.
    assert dc_offset(two).tolist() == [0.0, 5.0]
    row = torch.tensor([[[3.0, 1.0, 2.0]]])
    assert dc_offset(row).tolist() == [1.0]


def test_separability_against_the_formula_and_by_hand() -> None:
    filters = torch.tensor(np.random.default_rng(4).normal(size=(30, 3, 7)))
    _, c = spread(filters)
    expected = c[:, 0, 1].abs() / (c[:, 0, 0] * c[:, 1, 1]).sqrt()
    torch.testing.assert_close(separability_index(filters), expected)
    assert ((expected > 0) & (expected < 1)).all()
    # A separable |f| has no covariance of x and y, whatever the two spreads are.
    rows, columns = filters[:, :1].abs(), filters[:, :, :1].abs()
    assert separability_index(rows * columns).abs().max() < 1e-14
    # Where |f| is a count it is a sample, and the index its correlation.
    f = torch.zeros(1, 3, 5)
    f[0, 0, 4], f[0, 1, 3], f[0, 1, 2] = 1, 1, 2  # (2, 1), (1, 0), (0, 0) twice
    x, y = np.array([2, 1, 0, 0]), np.array([1, 0, 0, 0])
    assert separability_index(f).item() == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-6)
    line = torch.zeros(2, 3, 3)
    line[0, 1], line[1, :, 2] = torch.tensor([1.0, 2, 3]), 1.0
    assert separability_index(line).tolist() == [0.0, 0.0]


def test_batches_equal_single_filters() -> None:
    filters = torch.tensor(np.random.default_rng(1).normal(size=(300, 5, 5)))
    chosen = [0, 255, 256, 299]
    for measure in (dc_offset, half_grid_offset, separability_index):
        single = torch.cat([measure(filters[i : i + 1]) for i in chosen])
        torch.testing.assert_close(measure(filters)[chosen], single)
    assert dc_offset(filters[:0]).shape == (0,)


def test_weighted_spread() -> None:
    filters = torch.tensor(np.random.default_rng(2).normal(size=(4, 3, 5)))
    weight = torch.tensor(np.random.default_rng(3).normal(size=(4, 3, 5)))
    for given, each in ((weight, weight), (weight[0], weight[:1].expand(4, 3, 5))):
        for ours, theirs in zip(spread(filters, given), spread(filters * each), strict=True):
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(KeyFiltersError, match="no spread"):
        spread(filters, torch.zeros(3, 5))


def test_monomials_meet_the_mirrored_filter() -> None:
    f = torch.tensor([[[0.0, 2, 0], [0, 0, 0], [0, 0, 0]]])  # at (0, 1), so that ȳ = 1
    assert monomial_response(f, (0, 1)).tolist() == [-4.0]  # 2 (−1 − 1)
    assert monomial_response(f, (0, 2)).tolist() == [4.0]
    assert monomial_response(f, (1, 1)).tolist() == [0.0]


def test_bad_input_of_the_measures() -> None:
    with pytest.raises(KeyFiltersError, match="no DC offset"):
        dc_offset(torch.ones(1, 3, 3))
    with pytest.raises(KeyFiltersError, match="no DC offset"):
        dc_offset(torch.full((1, 3, 3), float("nan")))
    with pytest.raises(KeyFiltersError, match="no DC offset"):
        dc_offset(torch.tensor([[[1.0, float("inf")], [0, 0]]]))
    with pytest.raises(KeyFiltersError, match="not negative"):
        monomial_response(torch.ones(1, 3, 3), (-1, 0))
    for measure in (dc_offset, half_grid_offset, separability_index, spread):
        with pytest.raises(KeyFiltersError, match=r"\(n, k_y, k_x\)"):
            measure(torch.ones(3, 3))

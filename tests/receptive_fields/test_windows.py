"""Idealised models in windows of one row or column, of even sides, and rectangular ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

import keyfilters as kf
from keyfilters.receptive_fields import (
    build_dictionary,
    has_models,
    match,
    published_filters,
    published_in,
)
from keyfilters.receptive_fields.families import MATCHED, family, in_window
from keyfilters.receptive_fields.models import mean_scale, render_models

ROW = [form for form in in_window(MATCHED, (1, 15)) if form.name != "difference of Gaussians"]


def noisy(clean: np.ndarray, decibels: float = 20, seed: int = 0) -> np.ndarray:
    """Filters with white noise so far below their power."""
    power = clean.reshape(len(clean), -1).std(1)[:, None, None]
    random = np.random.default_rng(seed).normal(size=clean.shape)
    return clean + 10 ** (-decibels / 20) * power * random


def sampled(order: tuple[int, int], sigma: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Derivatives of the continuous Gaussian at the taps, y up, the centre in the middle."""
    y, x = ((np.arange(k) - (k - 1) / 2) for k in size)
    hermite = (lambda t, s: 1, lambda t, s: -t / s**2, lambda t, s: t**2 / s**4 - 1 / s**2)

    def axis(t: np.ndarray, p: int, s: np.ndarray) -> np.ndarray:
        return hermite[p](t, s) * np.exp(-(t**2) / (2 * s**2))

    across = [axis(t, p, s[:, None]) for t, p, s in zip((x, -y), order, sigma.T, strict=True)]
    return across[1][:, :, None] * across[0][:, None, :]


@pytest.mark.parametrize("form", ROW, ids=lambda form: form.name)
def test_rows_and_columns_are_named_right_at_20_decibels(form: object) -> None:
    form = next(f for f in ROW if f is form)
    count = 40
    values = {"sigma": np.linspace(0.8, 2.5, count), "alpha": np.linspace(0.4, 1.0, count)}
    if "alpha" in form.parameters:
        values["sigma"] = np.linspace(0.5, 1.0, count)
    chosen = [values["alpha" if name == "alpha" else "sigma"] for name in form.parameters]
    clean = form.render(torch.tensor(np.stack(chosen, axis=1)), (1, 15)).numpy()
    table = match(noisy(clean), null=None)
    right = (table["family"] == form.name).to_numpy()
    assert right.mean() >= 0.8 and table["sigma_y"].isna().all()
    error = np.abs(table["sigma_x"][right] / values["sigma"][right] - 1)
    assert error.median() < (0.12 if "alpha" in form.parameters else 0.04)
    drawn = render_models(table, (1, 15))
    lost = ((noisy(clean) - drawn) ** 2).sum((1, 2))
    power = ((noisy(clean) - noisy(clean).mean((1, 2), keepdims=True)) ** 2).sum((1, 2))
    np.testing.assert_allclose(1 - lost / power, table["r2"], atol=1e-6)
    # A column is a row that is turned: its first tap is on top, where y is largest.
    turned = match(noisy(clean).transpose(0, 2, 1)[:, ::-1], null=None)
    assert turned["sigma_x"].isna().all()
    np.testing.assert_allclose(turned["r2"], table["r2"], atol=1e-3)
    np.testing.assert_allclose(turned["sigma_y"][right], table["sigma_x"][right], rtol=0.05)
    swapped = {"x:0 y:0": "x:0 y:0", "sharpen": "sharpen", "x:d+ y:0": "x:0 y:d+"}
    if form.name in swapped:
        assert (turned["family"][right] == swapped[form.name]).all()


def test_edges_of_a_continuous_gaussian_in_a_row() -> None:
    sigma = np.stack([np.linspace(0.9, 3.0, 60), np.ones(60)], axis=1)
    table = match(noisy(sampled((1, 0), sigma, (1, 15))), null=None)
    assert (table["family"] == "x:d y:0").mean() >= 0.95
    # δx adds to the variance what a derivative that is exact does not.
    assert np.median(np.abs(table["sigma_x"] / sigma[:, 0] - 1)) < 0.12


@pytest.mark.parametrize("size", [(4, 4), (6, 6), (4, 7), (6, 5)])
@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 1), (2, 0)])
def test_even_windows_recover_scales(size: tuple[int, int], order: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    top = 0.26 * np.array(size[::-1])
    sigma = generator.uniform(0.75, np.maximum(top, 1.0), size=(60, 2))
    operators = ("0", "d", "dd")
    name = f"x:{operators[order[0]]} y:{operators[order[1]]}"
    clean = family(name).render(torch.tensor(sigma), size).numpy()
    table = match(noisy(clean, 26), null=None)
    right = (table["family"] == name).to_numpy()
    assert right.mean() >= 0.8
    for column, own in zip(("sigma_x", "sigma_y"), sigma.T, strict=True):
        assert np.median(np.abs(table[column][right] / own[right] - 1)) < 0.06


def test_the_scale_of_a_continuous_gaussian_is_told_as_well_as_in_odd_windows() -> None:
    sigma = np.repeat(np.linspace(0.9, 1.3, 8)[:, None], 2, axis=1)
    for even in (4, 6):
        error = []
        for k in (even, even + 1):
            found = match(sampled((0, 0), sigma, (k, k)), families="separable", null=None)
            assert (found["family"] == "x:0 y:0").mean() > 0.8
            error.append(np.abs(found[["sigma_x", "sigma_y"]].to_numpy() / sigma - 1))
        assert np.median(error[0]) < np.median(error[1]) and np.median(error[0]) < 0.13


def test_even_windows_are_drawn_half_way_between_taps() -> None:
    sigma = 0.9

    def kernel(n: int) -> float:  # T, averaged over two neighbours, which adds ¼ to its variance
        return float(scipy.special.ive(abs(n), sigma**2 - 0.25))

    axis = np.array([(kernel(n) + kernel(n + 1)) / 2 for n in (-2, -1, 0, 1)])
    drawn = family("x:0 y:0").render(torch.tensor([[sigma, sigma]], dtype=torch.float64), (4, 4))
    np.testing.assert_allclose(drawn[0], np.outer(axis, axis), atol=1e-12)
    wide = family("x:0 y:0").render(torch.tensor([[sigma, 2.0]], dtype=torch.float64), (40, 40))
    offsets = np.arange(40) - 19.5
    for profile, own in ((wide[0].sum(0), sigma), (wide[0].sum(1), 2.0)):
        assert float(profile.sum()) == pytest.approx(1)
        assert float(profile.numpy() @ offsets**2) == pytest.approx(own**2)
    rotated = family("rotated smoothing").render(
        torch.tensor([[3.0, 1.5, 0.6]], dtype=torch.float64), (40, 41)
    )[0]
    y, x = torch.arange(40) - 19.5, torch.arange(41) - 20.0
    points = torch.stack(torch.broadcast_tensors(x, -y[:, None]), dim=-1).double()
    spread = torch.einsum("yx,yxi,yxj->ij", rotated, points, points)
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    np.testing.assert_allclose(spread, turn @ np.diag([9.0, 2.25]) @ turn.T, atol=1e-6)


def test_what_was_matched_in_a_row_is_drawn_in_no_other_window() -> None:
    row = family("x:d y:0").in_window((1, 7)).render(torch.tensor([[1.0]]).double(), (1, 7))
    table = match(row.numpy(), null=None)
    np.testing.assert_allclose(render_models(table, (1, 7)), row, atol=1e-6)
    assert np.isnan(render_models(table, (3, 7))).all()


def test_families_are_those_that_differ() -> None:
    for size in ((5, 5), (4, 4), (3, 8)):
        assert in_window(MATCHED, size) == MATCHED
    row, column = in_window(MATCHED, (1, 9)), in_window(MATCHED, (9, 1))
    assert len(row) == len(column) == 11
    assert all(form.parameters[0] in ("sigma_x", "sigma") for form in row)
    assert all(form.parameters[0] in ("sigma_y", "sigma") for form in column)
    for size, forms in (((1, 9), row), ((2, 9), in_window(MATCHED, (2, 9)))):
        drawn = [f.render(torch.tensor([[1.1, 1.7][: len(f.parameters)]]), size).flatten()
                 for f in forms if "angle" not in f.parameters]  # fmt: skip
        unit = torch.nn.functional.normalize(torch.stack([x - x.mean() for x in drawn]), dim=1)
        cosine = (unit @ unit.T).abs() - torch.eye(len(unit))
        assert cosine.max() < 0.9999
    assert len(build_dictionary((1, 9)).atoms) < len(build_dictionary((3, 3)).atoms)


def test_what_has_no_models_is_said() -> None:
    assert [has_models(s) for s in ((1, 1), (1, 2), (2, 2), (1, 3), (2, 3))] == [False] * 3 + [
        True,
        True,
    ]
    two = match(np.random.default_rng(0).normal(size=(30, 2, 7)), null_draws=50)
    separable = two["family"].str.startswith("x:")
    assert separable.any() and two.loc[separable, "sigma_y"].isna().all()
    assert two["sigma_x"].notna().all() and np.isfinite(two[["r2", "p", "q"]]).all().all()
    assert mean_scale(two).notna().all()
    assert np.isfinite(render_models(two, (2, 7))).all()


def test_published_keys_in_every_window() -> None:
    square = published_filters("B", 9)
    for i, one in zip(published_in((1, 9)), published_filters("B", (1, 9)), strict=True):
        summed = square[i].sum(0)  # a row holds the sum over the rows, up to what was cut off
        assert np.corrcoef(one[0], summed)[0, 1] > 0.999
    even = published_filters("B", 6)
    assert even.shape == (8, 6, 6)
    for i in (4, 5, 6, 7):  # centred ones are symmetric about the middle of the window
        mirrored = even[i][::-1, ::-1] * (-1 if i in (4, 5) else 1)
        np.testing.assert_allclose(even[i], mirrored, atol=1e-12)
    assert published_in((2, 5)) == [] and published_in(1) == []
    with pytest.raises(kf.KeyFiltersError, match="no published keys of 2×5"):
        published_filters("B", (2, 5))


# family, sigma_x, sigma_y and r² of match, as they were before other windows had models.
SQUARE = {
    3: [
        ("x:0 y:d-", 1.340531, 1.065600, 0.73635187),
        ("shifted smoothing +y½", 1.363058, 1.363058, 0.54079519),
        ("diagonal half-edge x+y -", 1.222160, 1.222160, 0.66409654),
        ("x:d- y:0", 0.364464, 0.527178, 0.58811673),
        ("shifted smoothing +x½−y½", 0.534200, 0.534200, 0.59381092),
        ("shifted smoothing −y½", 1.500000, 1.500000, 0.22448732),
    ],
    5: [
        ("x:d- y:0", 1.280696, 1.323298, 0.50857924),
        ("shifted smoothing +x½", 2.500000, 2.500000, 0.13560620),
        ("x:0 y:0", 2.500000, 1.133397, 0.35959474),
        ("x:d- y:d", 1.556854, 1.576245, 0.61802383),
        ("shifted laplacian +y½", 0.000000, 0.000000, 0.11493326),
        ("shifted smoothing −y½", 2.500000, 2.500000, 0.44695720),
    ],
    7: [
        ("x:d y:d", 0.615340, 1.029787, 0.14383126),
        ("oriented edge", 1.652121, 1.652121, 0.38469005),
        ("x:0 y:d+", 1.379732, 2.093858, 0.24678490),
        ("shifted smoothing +x½+y½", 3.500000, 3.500000, 0.21647249),
        ("shifted smoothing +x½+y½", 0.921914, 0.921914, 0.22076574),
        ("shifted smoothing −x½", 3.500000, 3.500000, 0.13285924),
    ],
}


@pytest.mark.parametrize("size", SQUARE)
def test_square_windows_of_odd_side_are_as_they_were(size: int) -> None:
    filters = np.random.default_rng(5).normal(size=(6, size, size))
    filters = filters + np.roll(filters, 1, 1) + np.roll(filters, 1, 2)
    for row, expected in zip(match(filters, null=None).itertuples(), SQUARE[size], strict=True):
        assert row.family == expected[0]
        assert (row.sigma_x, row.sigma_y) == pytest.approx(expected[1:3], rel=1e-3, abs=1e-3)
        assert row.r2 == pytest.approx(expected[3], abs=1e-6)

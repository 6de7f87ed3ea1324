"""Methods A to D on the published eight filters, and on filters that are not those eight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import keyfilters as kf
from keyfilters.receptive_fields import METHODS, PUBLISHED_OPERATORS, operator, read_filters
from keyfilters.receptive_fields.fitting import _CLOSED_FORM, fit_normalized
from keyfilters.receptive_fields.operators import Border

SIGMAS = ["sigma_x", "sigma_y"]
SINGLE = [m for m in METHODS if not m.endswith("joint")]


@pytest.fixture
def eight(shared: Path) -> np.ndarray:
    return read_filters(shared / "master_key_filters_babaiee2025.txt")[0]


@pytest.fixture
def reference(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "lindeberg2026_reference.json").read_text())


def published(reference: dict[str, Any], method: str) -> pd.DataFrame:
    return pd.DataFrame(reference["published_fits"][method])


def published_normalized(reference: dict[str, Any]) -> np.ndarray:
    return np.array([reference["normalised_filters"][str(i)] for i in range(1, 9)])


# Filters 7 and 8 are normalised with a DC offset that the published analysis found to about 1e-5
# only; ours is the exact minimum (see test_moments.py). Where a test goes through the whole of
# fit_idealized these two therefore have a tolerance of their own, and the fits themselves are
# compared on the published normalised filters.


@pytest.mark.parametrize("method", METHODS)
def test_scales_of_the_published_normalised_filters(reference: dict[str, Any], method: str) -> None:
    targets = [torch.tensor(f, dtype=torch.float64) for f in published_normalized(reference)]
    forms = [operator(name) for name in PUBLISHED_OPERATORS]
    fit, expected = fit_normalized(targets, forms, method), published(reference, method)
    if method[0] in "AB":
        tolerance = 1e-6 if method[0] == "A" else 2e-4
        others = fit.table["operator"] != "sharpen"
        assert (fit.table[SIGMAS] - expected[SIGMAS])[others].abs().max(axis=None) < tolerance
    elif method.endswith("joint"):
        column = f"l{1 if method[0] == 'C' else 2}_residual"
        power = 1 if method[0] == "C" else 2
        for group in ([0, 1, 2, 3, 7], [4, 5], [6]):
            ours, theirs = ((t[column][group] ** power).sum() for t in (fit.table, expected))
            assert ours <= theirs + 1e-9
    else:
        column = f"l{1 if method[0] == 'C' else 2}_residual"
        others = fit.table["operator"] != "sharpen"
        assert (fit.table[column] <= expected[column] + 1e-9)[others].all()
    sharpen, theirs = fit.table.loc[6], expected.loc[6]
    if method in ("C2", "C-joint"):  # the published grid missed the optimum
        assert sharpen["l1_residual"] < theirs["l1_residual"] - 0.04
        assert (sharpen["sigma_x"], sharpen["alpha"]) == pytest.approx((0.6549, 0.4928), abs=1e-4)
    else:
        assert sharpen["l2_residual"] <= theirs["l2_residual"] + 1e-9
        assert sharpen["l2_residual"] == pytest.approx(theirs["l2_residual"], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_eight_filters_from_the_file(
    eight: np.ndarray, reference: dict[str, Any], method: str
) -> None:
    fit = kf.fit_idealized(eight, PUBLISHED_OPERATORS, method=method)
    expected = published(reference, method)
    assert fit.method == method and fit.models.shape == fit.normalized.shape == (8, 7, 7)
    assert fit.table["filter"].tolist() == list(range(1, 9))
    assert fit.table["alpha"].notna().tolist() == [i == 6 for i in range(8)]
    normalized = published_normalized(reference)
    np.testing.assert_allclose(fit.normalized[:6], normalized[:6], atol=1e-6)
    np.testing.assert_allclose(fit.normalized[6], normalized[6], atol=1.3e-3)
    np.testing.assert_allclose(fit.normalized[7], normalized[7], atol=2e-4)
    error = (fit.models - fit.normalized).reshape(8, -1)
    np.testing.assert_allclose(fit.table["l1_residual"], np.abs(error).sum(1))
    np.testing.assert_allclose(fit.table["l2_residual"], np.linalg.norm(error, axis=1))
    # Through the joint σ of A and B the offset of Filter 8 reaches the others.
    first = 6 if not method.endswith("joint") else 0
    difference = (fit.table[SIGMAS] - expected[SIGMAS]).abs().to_numpy()
    if method[0] in "AB":
        assert difference[:first].max(initial=0) < (1e-6 if method[0] == "A" else 2e-4)
        assert difference[first:].max() < 5e-5
    elif not method.endswith("joint"):
        column = f"l{1 if method[0] == 'C' else 2}_residual"
        excess = fit.table[column] - expected[column]
        assert excess.drop(6).max() < 1e-9
        assert excess[6] < (-0.04 if method == "C2" else 7e-4)
    assert (fit.table["at_boundary"] != "").tolist() == [
        method == "D1" and i == 3 for i in range(8)
    ]
    if method == "D1":
        assert fit.table.loc[3, "at_boundary"] == "sigma_y" and fit.table.loc[3, "sigma_y"] == 0


def test_no_better_minimum_is_found_by_differential_evolution(reference: dict[str, Any]) -> None:
    """The ℓ1 distance of Filter 3 has a narrow valley that runs aslant."""
    target, form = torch.tensor(published_normalized(reference)[2]), operator("dy-")

    def distance(point: np.ndarray) -> np.ndarray:
        x, y = torch.tensor(point)
        return (form.render(x, y, size=7) - target).abs().sum((1, 2)).numpy()

    oracle = scipy.optimize.differential_evolution(
        distance,
        [(0, 7), (0, 7)],
        vectorized=True,
        updating="deferred",
        rng=0,
        popsize=30,
        tol=1e-12,
    )
    fit = fit_normalized([target], [form], "C1")
    assert fit.table.loc[0, "l1_residual"] <= oracle.fun + 1e-11


def plant(
    name: str, first: float, second: float, size: int, border: str = "published"
) -> np.ndarray:
    form = operator(name)
    x, y = (torch.tensor([v], dtype=torch.float64) for v in (first, second))
    scales = (x, x, y) if form.sharpens else (x, x) if form.isotropic else (x, y)
    return form.render(*scales, size=size, border=border)[0].numpy()


ANISOTROPIC = ["dx", "dy", "dx+", "dx-", "dy+", "dy-", "dxx", "dyy", "dxy", "smooth"]


@pytest.mark.parametrize("border", ["published", "exact"])
@pytest.mark.parametrize("size", [5, 9, 11])
def test_variances_of_planted_filters_give_back_their_scales(size: int, border: Border) -> None:
    scales = [0.5, 0.6] if size == 5 else [0.8, 0.65]
    clean = np.stack([-0.07 * plant(name, *scales, size, border) for name in ANISOTROPIC])
    noise = np.random.default_rng(size).normal(size=clean.shape)
    noisy = clean + 1e-3 * np.abs(clean).max((1, 2), keepdims=True) * noise
    for filters, limit in ((clean, 1e-6), (noisy, 0.015)):
        table = kf.fit_idealized(filters, ANISOTROPIC, "B", border=border).table
        error = table[SIGMAS].sub(scales).abs().max(axis=1)
        # The DC offset of a planted T is not quite 0, as its outermost taps are not.
        limits = np.where(
            table["operator"] == "smooth", limit + (0.01 if size == 5 else 1e-3), limit
        )
        assert (error <= limits).all() and not table["at_boundary"].any()


@pytest.mark.parametrize(("size", "cut"), [(5, 0.06), (9, 0.002), (11, 3e-4)])
def test_distances_of_planted_filters_give_back_their_scales(size: int, cut: float) -> None:
    """C and D, up to what the window cuts off the response by which filters are normalised."""
    names = ["dx", "dy-", "dyy", "smooth"]
    scales = [0.5, 0.6] if size == 5 else [0.8, 0.65]
    clean = np.stack([12 * plant(name, *scales, size) for name in names])
    noise = np.random.default_rng(size).normal(size=clean.shape)
    noisy = clean + 1e-3 * np.abs(clean).max((1, 2), keepdims=True) * noise
    for method, filters, limit in (
        ("C1", clean, cut),
        ("D1", clean, cut),
        ("D1", noisy, cut + 0.03),
    ):
        table = kf.fit_idealized(filters, names, method).table
        assert table[SIGMAS].sub(scales).abs().max(axis=None) < limit
        assert not table["at_boundary"].any()


@pytest.mark.parametrize("method", ["B", "C2", "D2", "C-joint"])
def test_planted_isotropic_filters(method: str) -> None:
    filters = [0.2 * plant("laplacian", 0.8, 0, 11), 3 * plant("sharpen", 0.7, 0.4, 11)]
    table = kf.fit_idealized(filters, ["laplacian", "sharpen"], method).table
    assert table["sigma_x"].tolist() == table["sigma_y"].tolist()
    assert table["sigma_x"].tolist() == pytest.approx([0.8, 0.7], abs=1e-3)
    assert table.loc[1, "alpha"] == pytest.approx(0.4, abs=2e-3)


def test_closed_form_factors_against_quadrature() -> None:
    """σ² over the variance of squared Gaussian derivatives, orders 0 to 2, and the Laplacian."""
    x = np.linspace(-12, 12, 2401)
    gauss = np.exp(-(x**2) / 2)
    for factor, derivative in zip(
        _CLOSED_FORM, (gauss, -x * gauss, (x**2 - 1) * gauss), strict=True
    ):
        assert (x**2 * derivative**2).sum() * factor == pytest.approx((derivative**2).sum())
    x, y = np.meshgrid(x[::10], x[::10])
    laplacian = (x**2 + y**2 - 2) * np.exp(-(x**2 + y**2) / 2)
    assert (x**2 * laplacian**2).sum() * _CLOSED_FORM[0] == pytest.approx((laplacian**2).sum())


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    amplitude=st.floats(1e-4, 1e4),
    size=st.sampled_from([3, 5, 7]),
    method=st.sampled_from(["A", "B", "C2", "D1", "D-joint"]),
)
@example(seed=196, amplitude=3.0, size=3, method="C2")  # whose ℓ1 distance is level at its least
def test_amplitude_changes_nothing(seed: int, amplitude: float, size: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    names = ["dx", "dy+", "dyy", "smooth", "sharpen"]
    filters = np.stack([plant(name, 0.6, 0.5, size) for name in names])
    filters += 0.02 * rng.normal(size=filters.shape)
    first, second = (kf.fit_idealized(c * filters, names, method) for c in (1.0, amplitude))
    columns = [*SIGMAS, "alpha", "l1_residual", "l2_residual"]
    np.testing.assert_allclose(first.table[columns], second.table[columns], atol=1e-5)


MIRROR_X = {"dx+": "dx-", "dx-": "dx+"}
SWAP = {"x": "y", "y": "x"}
NAMES = ["dx", "dy", "dx+", "dy-", "dxy", "smooth"]


def rough(seed: int) -> np.ndarray:
    filters = np.stack([plant(name, 0.8, 0.6, 7) for name in NAMES])
    return filters + 0.03 * np.random.default_rng(seed).normal(size=filters.shape)


@pytest.mark.parametrize("method", ["A", "B", "C1", "D1"])
def test_mirroring_swaps_forward_and_backward(method: str) -> None:
    filters = rough(1)
    mirrored = [MIRROR_X.get(name, name) for name in NAMES]
    first = kf.fit_idealized(filters, NAMES, method).table
    second = kf.fit_idealized(filters[:, :, ::-1], mirrored, method).table
    np.testing.assert_allclose(first[SIGMAS], second[SIGMAS], atol=2e-6)


@pytest.mark.parametrize("method", ["A", "B", "C1", "D1"])
def test_transposing_swaps_x_and_y(method: str) -> None:
    filters = rough(2)
    swapped = ["".join(SWAP.get(letter, letter) for letter in name) for name in NAMES]
    swapped[NAMES.index("dxy")] = "dxy"
    swapped[NAMES.index("smooth")] = "smooth"
    # Rows run down while y points up, so that x = y is the other diagonal of the array.
    transposed = filters[:, ::-1, ::-1].transpose(0, 2, 1)
    first = kf.fit_idealized(filters, NAMES, method).table
    second = kf.fit_idealized(transposed, swapped, method).table
    np.testing.assert_allclose(first[SIGMAS], second[SIGMAS[::-1]], atol=2e-6)


@pytest.mark.parametrize("method", SINGLE)
def test_a_constant_is_forgotten_by_smoothing_and_sharpening_only(method: str) -> None:
    names = ["smooth", "sharpen", "dx"]
    filters = np.stack([plant(name, 0.7, 0.5, 7) for name in names])
    filters += 0.02 * np.random.default_rng(3).normal(size=filters.shape)
    first = kf.fit_idealized(filters, names, method).table
    second = kf.fit_idealized(filters + 0.3, names, method).table
    columns = [*SIGMAS, "l1_residual", "l2_residual"]
    np.testing.assert_allclose(first.loc[:1, columns], second.loc[:1, columns], atol=2e-6)
    # A derivative is taken as it stands, as the published (zero-sum) filters were.
    assert not np.allclose(
        first.loc[2, columns].astype(float), second.loc[2, columns].astype(float)
    )


def test_joint_scales_are_shared_by_groups() -> None:
    names = ["dx+", "smooth", "dx", "dy", "dxx", "laplacian", "sharpen", "sharpen"]
    filters = np.stack([plant(name, 0.5 + 0.05 * i, 0.5, 7) for i, name in enumerate(names)])
    singles = {method: kf.fit_idealized(filters, names, method).table for method in "AB"}
    for method in ("A-joint", "B-joint", "C-joint", "D-joint"):
        table = kf.fit_idealized(filters, names, method).table
        assert table["sigma_x"].tolist() == table["sigma_y"].tolist()
        assert table["sigma_x"].nunique() == 5 and table["sigma_x"][:6].nunique() == 3
        for group in ([0, 1], [2, 3], [4, 5]):
            assert table.loc[group, "sigma_x"].nunique() == 1
            if method[0] in "AB":
                own = singles[method[0]].loc[group, SIGMAS].to_numpy()
                assert table.loc[group[0], "sigma_x"] == pytest.approx(np.exp(np.log(own).mean()))


def test_ends_of_ranges_are_named() -> None:
    impulse = np.zeros((7, 7))
    impulse[3, 3] = 1
    for method in ("A", "B", "C1", "D1", "D2"):
        table = kf.fit_idealized([impulse], ["smooth"], method).table
        assert table.loc[0, SIGMAS].tolist() == [0, 0]
        assert table.loc[0, "at_boundary"] == "sigma_x, sigma_y"
    # A blurring filter is no sharpening: α would have to be negative.
    table = kf.fit_idealized([plant("smooth", 0.6, 0.6, 7)], ["sharpen"], "B").table
    assert table.loc[0, "alpha"] == 0 and "alpha" in table.loc[0, "at_boundary"]
    # Two far taps: no smoothing kernel in the window has that much variance along x.
    far = np.zeros((7, 7))
    far[3, [0, 6]] = 1
    table = kf.fit_idealized([far], ["smooth"], "B").table
    assert table.loc[0, SIGMAS].tolist() == [7, 0]
    assert table.loc[0, "at_boundary"] == "sigma_x, sigma_y"


GOOD = plant("dx", 0.7, 0.7, 7)


@pytest.mark.parametrize(
    ("filters", "operators", "method", "message"),
    [
        ([GOOD + 1j], ["dx"], "B", "they are complex"),
        (GOOD, ["dx"], "B", r"shape \(n, k, k\) with k odd and at least 3, got \(7, 7\)"),
        ([GOOD[:6, :6]], ["dx"], "B", r"got \(1, 6, 6\)"),
        ([GOOD[:1]], ["dx"], "B", r"got \(1, 1, 7\)"),
        (np.zeros((0, 7, 7)), [], "B", "at least one filter"),
        ([GOOD, GOOD + np.nan], ["dx", "dx"], "B", "filter 2 holds a number that is not finite"),
        ([np.full((3, 3), 0.1)], ["dx"], "B", "filter 1 is constant"),
        ([np.zeros((3, 3))], ["smooth"], "B", "filter 1 is constant"),
        ([GOOD], ["dx", "dy"], "B", "expected 1 operators, one a filter, got 2"),
        ([GOOD], "dx", "B", "one a filter, got the one text 'dx'"),
        ([GOOD], ["ddx"], "B", "no operator is called 'ddx'; the nearest names are: dx"),
        ([GOOD], ["dx"], "b", "no fitting method is called 'b'; expected one of A, A-joint"),
        ([GOOD], ["dx"], "C-jont", "nearest names are: C-joint"),
        ([GOOD], ["dy"], "B", "filter 1 cannot be fitted: .*'dy' .* response to y is 0"),
        ([GOOD], ["dxy"], "B", "response to xy is 0"),
        ([GOOD], ["laplacian"], "B", "response to .* is 0"),
        ([GOOD], ["smooth"], "B", "its sum, less the DC offset, is 0"),
        ([["a"]], ["dx"], "B", "not an array of real numbers"),
        ([GOOD, GOOD[:5, :5]], ["dx", "dx"], "B", "not an array of real numbers"),
    ],
)
def test_bad_input(filters: object, operators: list[str], method: str, message: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        kf.fit_idealized(filters, operators, method)  # type: ignore[arg-type]


def test_bad_border_and_tensors_are_taken() -> None:
    with pytest.raises(kf.KeyFiltersError, match="border must be one of published, exact"):
        kf.fit_idealized([GOOD], ["dx"], border="zero")  # type: ignore[arg-type]
    tensor = torch.tensor(GOOD[None], dtype=torch.float32, requires_grad=True)
    assert kf.fit_idealized(tensor, ["dx"]).table.loc[0, "sigma_x"] == pytest.approx(0.7, abs=1e-5)

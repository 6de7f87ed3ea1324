"""Every family against a slow drawing of its formula from SciPy's Bessel functions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

import keyfilters as kf
from keyfilters.receptive_fields import FAMILIES, Family, build_dictionary
from keyfilters.receptive_fields.families import family


def render(name: str, size: int = 7, sigma: float = 0.8, second: float = 0.8) -> np.ndarray:
    form = family(name)
    values = [sigma, second, 0.0][: len(form.parameters)]
    return form.render(torch.tensor([values]), (size, size))[0].numpy()


def kernel(x: int, y: int, sx: float = 0.8, sy: float = 0.8) -> float:
    return float(scipy.special.ive(abs(x), sx**2) * scipy.special.ive(abs(y), sy**2))


def draw(formula: object, size: int = 7) -> np.ndarray:
    """Array of f(x, y) with x right and y up: row 0 is the largest y."""
    r = size // 2
    span = range(-r, r + 1)
    return np.array([[formula(x, -row) for x in span] for row in span])  # type: ignore[operator]


SLOW = {
    "x:0 y:0": kernel,
    "x:d y:0": lambda x, y: (kernel(x + 1, y) - kernel(x - 1, y)) / 2,
    "x:d+ y:0": lambda x, y: kernel(x + 1, y) - kernel(x, y),
    "x:0 y:d+": lambda x, y: kernel(x, y + 1) - kernel(x, y),
    "x:0 y:d-": lambda x, y: kernel(x, y) - kernel(x, y - 1),
    "x:0 y:dd": lambda x, y: kernel(x, y + 1) - 2 * kernel(x, y) + kernel(x, y - 1),
    "x:d y:d": lambda x, y: sum(s * t * kernel(x + s, y + t) / 4 for s in (-1, 1) for t in (-1, 1)),
    "laplacian": lambda x, y: (
        sum(kernel(x + s, y + t) for s, t in ((1, 0), (-1, 0), (0, 1), (0, -1))) - 4 * kernel(x, y)
    ),
    "diagonal half-edge x+y +": lambda x, y: kernel(x + 1, y + 1) - kernel(x, y),
    "diagonal half-edge x−y +": lambda x, y: kernel(x + 1, y - 1) - kernel(x, y),
    "diagonal half-edge x−y -": lambda x, y: kernel(x, y) - kernel(x - 1, y + 1),
    "shifted smoothing −x½+y½": lambda x, y: (
        (kernel(x, y) + kernel(x + 1, y) + kernel(x, y - 1) + kernel(x + 1, y - 1)) / 4
    ),
    "square": lambda x, y: sum(kernel(x + s, y + t) / 9 for s in (-1, 0, 1) for t in (-1, 0, 1)),
}


@pytest.mark.parametrize("name", SLOW)
def test_against_slow_drawing(name: str) -> None:
    np.testing.assert_allclose(render(name), draw(SLOW[name]), atol=1e-6)


def test_shifted_laplacian_is_the_mean_of_neighbours() -> None:
    wide = render("laplacian", size=9)
    moved = (wide[1:-1, 1:-1] + wide[1:-1, 2:]) / 2  # f(x) and f(x + 1)
    np.testing.assert_allclose(render("shifted laplacian −x½"), moved, atol=1e-6)


def test_sharpening_and_cross() -> None:
    delta = np.zeros((7, 7))
    delta[3, 3] = 1
    expected = delta - 0.5 * render("laplacian")
    np.testing.assert_allclose(render("sharpen", second=0.5), expected, atol=1e-6)
    cross = draw(lambda x, y: kernel(x, y, 0.5, 2.0) + kernel(x, y, 2.0, 0.5))
    np.testing.assert_allclose(render("cross", sigma=0.5, second=2.0), cross, atol=1e-6)


def bright_side(filters: np.ndarray) -> tuple[float, float]:
    """Direction from the negative to the positive mass, (x right, y up)."""
    r = filters.shape[0] // 2
    x = np.arange(-r, r + 1)
    return float((filters * x).sum()), float((filters * -x[:, None]).sum())


@pytest.mark.parametrize("form", [f for f in FAMILIES if "edge" in f.kind], ids=lambda f: f.name)
def test_names_of_edges_point_to_the_bright_side(form: Family) -> None:
    filters = render(form.name)
    for name, signed in ((form.positive, filters), (form.negative, -filters)):
        x, y = bright_side(signed)
        for axis, value in (("x", x), ("y", y)):
            if f"+{axis}" in name:
                assert value > 0.1
            elif f"−{axis}" in name:
                assert value < -0.1
            else:
                assert abs(value) < 1e-5
        if "(on)" in name or "(off)" in name:
            assert (signed[3, 3] > 0) == ("(on)" in name)


@pytest.mark.parametrize("form", [f for f in FAMILIES if "centre" in f.kind], ids=lambda f: f.name)
def test_names_of_centres_tell_their_sign_and_place(form: Family) -> None:
    for name, sign in ((form.positive, 1), (form.negative, -1)):
        filters = sign * render(form.name, second=0.3 if "alpha" in form.parameters else 0.8)
        bright = "off-centre" not in name and "inverted" not in name
        assert (np.abs(filters).max() == filters.max()) == bright
        weight = np.abs(filters) ** 3 * (np.sign(filters) == (1 if bright else -1))
        x, y = bright_side(weight / weight.sum())
        for axis, value in (("x", x), ("y", y)):
            expected = 0.5 if f"+{axis}½" in name else -0.5 if f"−{axis}½" in name else 0.0
            assert value == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (7, 7), (1, 7), (4, 4), (9, 5)])
def test_dictionary_is_centred_unit_and_without_repetitions(size: tuple[int, int]) -> None:
    dictionary = build_dictionary(size)
    atoms = dictionary.atoms.reshape(len(dictionary.atoms), -1)
    table = dictionary.table()
    assert np.isfinite(atoms).all() and len(atoms) == len(table)
    assert list(table.columns) == ["family", "formula", "sigma", "second"]
    assert np.array_equal(table["sigma"], dictionary.parameters[:, 0])
    np.testing.assert_allclose(atoms.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-5)
    cosine = np.abs(atoms @ atoms.T) - np.eye(len(atoms))
    assert cosine.max() < 1 - 1e-6


@pytest.mark.parametrize("shape", [(2, 2), (2, 0), (1,)])
def test_a_family_takes_its_own_number_of_parameters(shape: tuple[int, ...]) -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"laplacian.*shape \(n, 1\)"):
        family("laplacian").render(torch.ones(shape), (3, 3))


def test_unknown_family() -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"nearest names are: .*laplacian"):
        family("laplace")

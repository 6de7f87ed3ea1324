from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import keyfilters as kf
from keyfilters.receptive_fields import matching, search
from keyfilters.receptive_fields.coordinates import Grid
from keyfilters.receptive_fields.families import MATCHED, Family, family
from keyfilters.receptive_fields.matching import match
from keyfilters.receptive_fields.search import WORTH_MENTION
from keyfilters.receptive_fields.significance import FLOOR
from keyfilters.receptive_fields.tables import Jets, Tabulated

SEPARABLE = [form for form in MATCHED if form.separable is not None]


def planted(form: Family, count: int, size: int, noise: float, seed: int = 0) -> tuple:
    """Filters of one family with random parameters, and white noise at `noise` of their power."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        draw = torch.rand(count, generator=generator, dtype=torch.float64)
        return low + (high - low) * draw

    # A wide surround of the sharpening family is too weak beside its impulse to be measured.
    sigma = uniform(0.5, 1.0 if "alpha" in form.parameters else 0.24 * size)
    second = uniform(0.5, 0.24 * size)
    values = {
        "sigma": sigma,
        "sigma_x": sigma,
        "sigma_y": second,
        "alpha": uniform(0.3, 1.0),
        "angle": uniform(0, 2 * np.pi),
        "sigma_long": 3 * sigma,
        "sigma_surround": 2 * sigma,
        "sigma_across": 2 * sigma,
    }
    parameters = torch.stack([values[name] for name in form.parameters], dim=1)
    clean = form.render(parameters, (size, size))
    power = (clean - clean.mean((1, 2), keepdim=True)).std((1, 2), keepdim=True)
    random = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return (clean + noise * power * random).numpy(), sigma.numpy(), clean.numpy()


def explained(filters: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """r² of the true model, amplitude and offset fitted."""
    f = filters.reshape(len(filters), -1)
    m = clean.reshape(len(clean), -1)
    f, m = f - f.mean(1, keepdims=True), m - m.mean(1, keepdims=True)
    return (f * m).sum(1) ** 2 / ((f * f).sum(1) * (m * m).sum(1))


@pytest.mark.parametrize("form", MATCHED, ids=lambda f: f.name)
def test_families_are_recovered_at_20_decibels(form: Family) -> None:
    size, taps = 7, 49
    filters, sigma, clean = planted(form, 60, size, noise=0.1)
    table = match(filters, null=None)
    right = (table["family"] == form.name).to_numpy()
    # A family that fits as well with as few parameters is equivalent on these taps.
    truth = taps * np.log(np.maximum(1 - explained(filters, clean), FLOOR))
    found = taps * np.log(np.maximum(1 - table["r2"], FLOOR))
    freedom = (table["parameters"] - (2 + len(form.parameters))) * np.log(taps)
    assert (right | (found + freedom <= truth + WORTH_MENTION)).mean() >= 0.95
    assert right.mean() >= 0.7
    error = np.abs(table["sigma_x"][right] / sigma[right] - 1)
    assert error.median() <= 0.05


def test_separable_families_are_named_right_among_themselves() -> None:
    right = []
    for form in SEPARABLE:
        table = match(planted(form, 40, 7, noise=0.1)[0], families="separable", null=None)
        right.append((table["family"] == form.name).mean())
    assert np.mean(right) >= 0.95 and min(right) >= 0.9


def forget_what_is_cached() -> None:
    """Empty the caches of all modules of receptive fields, which depend on the families."""
    modules = [x for name, x in sys.modules.items() if name.startswith(matching.__package__)]
    for value in [value for module in modules for value in vars(module).values()]:
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture(params=["x:d y:dd", "x:d+ y:0", "sharpen", "cross", "rotated edge"])
def only_family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """The only family that filters are matched with."""
    form = family(request.param)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("matching", "search", "tables"):
            patched.setattr(f"keyfilters.receptive_fields.{name}.MATCHED", (form,))
        forget_what_is_cached()
        yield form
    forget_what_is_cached()


def test_solver_finds_the_optimum_of_a_slow_one(only_family: Family) -> None:
    form = only_family
    random = np.random.default_rng(0).standard_normal((3, 5, 5))
    filters = random + planted(form, 3, 5, 0.5)[0]
    found = match(filters, null=None)
    for one, r2 in zip(filters, found["r2"], strict=True):
        bounds = [(max(low, -3.2), min(top, 3.2)) for low, top in form.bounds((5, 5))]

        def unexplained(point: np.ndarray, one: np.ndarray = one) -> float:
            drawn = form.render(torch.tensor(point[None]), (5, 5)).numpy()
            return -float(np.nan_to_num(explained(one[None], drawn)[0]))

        lines = [np.linspace(low + 0.02, top, 6) for low, top in bounds]
        grid = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, len(bounds))
        shares = [unexplained(point) for point in grid]
        best = min(
            minimize(unexplained, grid[i], method="Nelder-Mead", bounds=bounds).fun
            for i in np.argsort(shares)[:3]
        )
        assert r2 >= -best - 5e-3


@pytest.mark.parametrize("form", MATCHED, ids=lambda f: f.name)
def test_coordinates_and_parameters_are_inverse(form: Family) -> None:
    grid = Grid(form, (7, 5))
    points = grid.starts()
    torch.testing.assert_close(grid.parameters(grid.points(points)), points, atol=0.03, rtol=0)
    low, high = grid.parameters(grid.nodes()).aminmax(dim=0)
    for least, largest, (_, top) in zip(low, high, form.bounds((7, 5)), strict=True):
        assert least >= 0 and largest <= (2 * np.pi if top == np.inf else top) + 1e-9


@pytest.mark.parametrize("name", ["x:d+ y:dd", "laplacian", "oriented edge", "rotated smoothing"])
def test_tabulated_forms_are_those_that_are_drawn(name: str) -> None:
    form, size = family(name), (7, 7)
    grid, number = Grid(form, size), MATCHED.index(family(name))
    freedom = len(form.parameters)
    counts = torch.tensor(grid.counts)
    generator = torch.Generator().manual_seed(0)
    points = 0.5 + torch.rand(40, freedom, generator=generator) * (counts - 2)
    which = torch.full((40,), number)
    exact = form.render(grid.parameters(points.double()), size).flatten(1)
    exact = torch.nn.functional.normalize(exact - exact.mean(1, keepdim=True)).float()
    for jets in (Tabulated(size, freedom, torch.device("cpu")), Jets(size)):
        product, gram, distance = jets(exact, which, points.T)
        basis = [torch.ones(40), *distance]
        if jets.second:
            basis += [*(distance**2 / 2)]
            basis += [distance[i] * distance[j] for i, j in combinations(range(freedom), 2)]
        weights = torch.stack(basis)
        power = torch.einsum("in,ijn,jn->n", weights, gram, weights)
        cosine = (weights * product).sum(0) / power.sqrt()
        assert cosine.abs().min() > 1 - 1e-4


@pytest.mark.parametrize("families", ["separable", "all"])
def test_scale_offset_mirror_and_transpose(families: str) -> None:
    filters, *_ = planted(family("x:d+ y:0"), 20, 7, noise=0.05)
    base = match(filters, families=families, null=None)
    scaled = match(-3e-4 * filters + 0.7, families=families, null=None)
    shapes = ["family", "sigma_x", "sigma_y", "r2"]
    for column in shapes[1:]:
        np.testing.assert_allclose(scaled[column], base[column], rtol=2e-2, atol=1e-3)
    assert (scaled["family"] == base["family"]).all()
    np.testing.assert_allclose(scaled["amplitude"], -3e-4 * base["amplitude"], rtol=2e-2)
    np.testing.assert_allclose(scaled["offset"], 0.7 - 3e-4 * base["offset"], atol=1e-4)
    mirrored = match(filters[:, :, ::-1], families=families, null=None)
    assert (base["family"] == "x:d+ y:0").all() and (mirrored["family"] == "x:d- y:0").all()
    turned = match(filters.transpose(0, 2, 1), families=families, null=None)
    # Rows run down and y points up, so transposing also mirrors.
    assert (turned["family"] == "x:0 y:d-").all()
    np.testing.assert_allclose(turned["sigma_y"], base["sigma_x"], rtol=2e-2)


def test_amplitude_and_offset_rebuild_the_filter() -> None:
    filters, *_ = planted(family("x:0 y:dd"), 5, 7, noise=0.0)
    for row, stored in zip(match(filters, null=None).itertuples(), filters, strict=True):
        sigma = torch.tensor([[row.sigma_x, row.sigma_y]], dtype=torch.float64)
        model = family(row.family).render(sigma, (7, 7))[0].numpy()
        np.testing.assert_allclose(row.amplitude * model + row.offset, stored, atol=1e-4)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_noise_is_not_discovered(size: int) -> None:
    noise = np.random.default_rng(1).standard_normal((800, size, size))
    table = match(noise, families="separable")
    assert (table["q"] < 0.05).mean() < 0.01
    assert abs((table["p"] < 0.1).mean() - 0.1) < 0.04
    both = np.concatenate([noise, planted(family("x:d y:0"), 200, size, 0.3)[0]])
    found = match(both, families="separable")["q"].to_numpy() < 0.1
    if size > 3:  # nine taps say too little
        assert found[800:].mean() > 0.9
        assert found[:800].sum() <= 0.2 * found.sum()


@pytest.mark.parametrize("families", ["separable", "all"])
def test_any_scale_and_offset_gives_the_same(families: str) -> None:
    filters, *_ = planted(family("x:d y:dd"), 6, 7, noise=0.1)
    base = match(filters, families=families, null_draws=0)
    for power in (-1000, -140, -63, 66, 128, 1000):
        scaled = match(filters * 2.0**power, families=families, null_draws=0)
        numbers = ["sigma_x", "sigma_y", "r2"]  # a power of two changes no bit
        pd.testing.assert_frame_equal(scaled[["family", *numbers]], base[["family", *numbers]])
        np.testing.assert_array_equal(scaled["amplitude"], base["amplitude"] * 2.0**power)
    for scale, offset in ((1e-19, 0.0), (1e20, 0.0), (1.0, 1e4), (-1e-7, 1e-3)):
        moved = match(scale * filters + offset, families=families, null_draws=0)
        assert (moved["family"] == base["family"]).all()
        np.testing.assert_allclose(moved["r2"], base["r2"], atol=1e-4)
        np.testing.assert_allclose(moved["amplitude"], scale * base["amplitude"], rtol=2e-2)


def test_filters_of_any_real_type() -> None:
    filters = torch.tensor(planted(family("x:d y:0"), 5, 5, noise=0.1)[0])
    short = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    for dtype in (*short, torch.float32):
        given = filters.to(dtype)
        pd.testing.assert_frame_equal(
            match(given, null_draws=0), match(given.double(), null_draws=0)
        )
    whole = np.random.default_rng(0).integers(-9, 9, size=(2, 5, 5))
    pd.testing.assert_frame_equal(match(whole, null_draws=0), match(whole * 1.0, null_draws=0))
    for bad in (filters > 0, filters + 1j, np.full((1, 5, 5), "x")):
        with pytest.raises(kf.KeyFiltersError, match="expected filters of real numbers, got"):
            match(bad)


@pytest.mark.parametrize("size", [(63, 63), (3, 41)])
def test_wide_windows(size: tuple[int, int]) -> None:
    sigma = torch.tensor([[size[1] * 0.3, size[0] * 0.4]], dtype=torch.float64)
    table = match(family("x:d y:0").render(sigma, size), families="separable", null_draws=0)
    assert table["family"][0] == "x:d y:0" and table["r2"][0] > 0.99999
    np.testing.assert_allclose(table[["sigma_x", "sigma_y"]].to_numpy(), sigma, rtol=1e-2)


def test_rotated_forms_of_a_wide_window() -> None:
    given = torch.tensor([[9.0, 18.0, 0.6]], dtype=torch.float64)
    table = match(family("rotated edge").render(given, (63, 63)), null_draws=0)
    assert table["family"][0] == "rotated edge" and table["r2"][0] > 0.99999


@pytest.mark.parametrize("k", [5, 9, 11])
def test_chunks_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """The last of the filters stands alone in a part; kernels of large scale in some parts only."""
    monkeypatch.setattr(matching, "PART", 32)
    drawn = [planted(form, 5, k, 0.5, seed=i)[0] for i, form in enumerate(MATCHED)]
    filters = np.random.default_rng(0).permutation(np.concatenate(drawn))[:193]
    whole = match(filters, null=None)
    for chunk in (7, 64):
        again = match(filters, null=None, chunk=chunk)
        pd.testing.assert_frame_equal(whole, again, check_exact=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            again = match(filters, null=None, chunk=4096)
            pd.testing.assert_frame_equal(whole, again, check_exact=True)
    finally:
        torch.set_num_threads(before)


def test_candidates_that_are_left_out_would_not_have_won(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [planted(form, 60, 7, 0.1, seed=i)[0] for i, form in enumerate(MATCHED)]
    noise = np.random.default_rng(0).normal(size=(1000, 7, 7))
    filters = np.concatenate([*drawn, noise])
    found = match(filters, null=None)
    monkeypatch.setattr(search, "REACH", (np.pi / 2, np.pi / 2))  # nothing is out of reach
    monkeypatch.setattr(search, "SLACK", 1e6)  # and all are drawn
    whole = match(filters, null=None)
    assert ((whole["r2"] - found["r2"]) > 1e-3).mean() < 1e-3
    assert (whole["family"] == found["family"]).mean() > 0.995


def test_a_candidate_wins_only_where_none_simpler_surely_does() -> None:
    behind, ranks = torch.tensor([[0.0, 1.0, 1.8, 2.3, 3.0]]), torch.tensor([[3.0, 1, 2, 0, 0]])
    assert search._can_win(behind, ranks).tolist() == [[False, True, False, True, False]]


def test_progress_counts_the_filters() -> None:
    told: list[tuple[int, int]] = []
    count = 2 * matching.PART + 50
    filters = np.random.default_rng(0).normal(size=(count, 3, 3))
    options = {"families": "separable", "null": None}
    quiet = match(filters, **options)
    found = match(filters, **options, chunk=64, progress=lambda *done: told.append(done))
    pd.testing.assert_frame_equal(found, quiet)
    done = [x for x, _ in told]
    assert len(told) > 1 and done == sorted(set(done)) and done[-1] == count
    assert {every for _, every in told} == {count}


def test_filters_without_a_shape_have_no_p_values() -> None:
    found = match(np.ones((4, 5, 5)))
    assert found[["p", "q", "r2"]].isna().all(axis=None)
    assert (found["flaw"] == "constant").all() and (found["p_from"] == "").all()


def test_filters_without_a_shape_are_flagged() -> None:
    filters = np.random.default_rng(0).standard_normal((4, 5, 5))
    filters[1], filters[2, 0, 0] = 0.3, np.nan
    table = match(filters, null_draws=20)
    assert table["flaw"].tolist() == ["", "constant", "non-finite", ""]
    assert (table["family"] == "").tolist() == [False, True, True, False]
    numbers = table.loc[table["flaw"] == "", ["sigma_x", "sigma_y", "r2", "amplitude", "p", "q"]]
    assert np.isfinite(numbers.to_numpy()).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 5), r"shape \(n, k_y, k_x\)"), ((3, 2, 2), "at least 3 taps"), ((3, 1, 2), "got 1×2")],
)
def test_bad_shapes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        match(np.zeros(shape))
    with pytest.raises(kf.KeyFiltersError, match="'all' or 'separable', got 'some'"):
        match(np.zeros((1, 3, 3)), families="some")

"""The centred unit form against its formula, in the two precisions."""

from __future__ import annotations

import numpy as np
import pytest

from keyfilters.scalespace.unit import centred_unit, exact_centred_unit, why_unusable


def by_hand(filters: np.ndarray) -> np.ndarray:
    """``(f − mean f) / ‖f − mean f‖₂``, a filter at a time."""
    forms = []
    for f in filters.astype(np.longdouble):
        centred = f - f.sum() / f.size
        forms.append(centred / np.sqrt((centred**2).sum()))
    return np.array(forms, dtype=np.float64)


@pytest.mark.parametrize("shape", [(20, 3, 5), (9, 3, 3), (1, 1, 2), (4, 7, 7)])
def test_the_formula_filter_by_filter(shape: tuple[int, int, int]) -> None:
    # As many filters as taps too: a mean over the wrong axis would go unnoticed elsewhere.
    rng = np.random.default_rng(0)
    filters = rng.normal(size=shape) * rng.uniform(0.1, 9, size=(shape[0], 1, 1))
    filters += rng.normal(size=(shape[0], 1, 1))
    unit = exact_centred_unit(filters)
    assert unit.shape == shape and unit.dtype == np.float64
    np.testing.assert_allclose(unit, by_hand(filters), atol=1e-15)
    short = centred_unit(filters)
    assert short.shape == (shape[0], shape[1] * shape[2]) and short.dtype == np.float32
    np.testing.assert_allclose(short, by_hand(filters).reshape(shape[0], -1), atol=1e-7)


def test_sizes_and_constants_that_strain_float64() -> None:
    f = np.random.default_rng(1).normal(size=(12, 5, 5))
    expected = by_hand(f)
    for scale in (1e-300, 1e300):
        np.testing.assert_allclose(exact_centred_unit(scale * f), expected, atol=1e-14)
    raised = f + 1e6
    unit = exact_centred_unit(raised)
    np.testing.assert_allclose(unit, by_hand(raised), atol=1e-14)
    assert np.abs(unit.mean((1, 2))).max() < 1e-16
    np.testing.assert_allclose(np.linalg.norm(unit, axis=(1, 2)), 1, atol=1e-15)


def test_doing_it_twice_changes_no_bit_of_any_filter() -> None:
    f = np.random.default_rng(2).normal(size=(30, 3, 4))
    once = exact_centred_unit(f)
    np.testing.assert_array_equal(exact_centred_unit(once), once)
    # Each filter is judged by itself: some are done, some are not.
    mixed = np.where((np.arange(30) % 2 == 0)[:, None, None], once, f)
    np.testing.assert_array_equal(exact_centred_unit(mixed)[::2], once[::2])
    np.testing.assert_allclose(exact_centred_unit(mixed), once, atol=1e-15)


def test_what_has_no_shape_is_named_in_the_order_of_gravity() -> None:
    f = np.random.default_rng(3).normal(size=(8, 3, 3))
    f[1], f[2], f[3] = 0, 5e-5, -0.25
    f[4, 2, 0], f[5, 0, 1] = np.inf, np.nan
    f[6] = 1 + 1e-7 * f[6]  # equal to rounding in float32
    assert why_unusable(f).tolist() == [
        "", "dead", "dead", "constant", "non-finite", "non-finite", "constant", "",
    ]  # fmt: skip
    f[7] = 2e-4 * np.sign(f[7])
    assert why_unusable(f)[7] == "" and why_unusable(f, dead_below=2e-4)[7] == "dead"
    assert why_unusable(f, dead_below=0.0)[1] == "dead"

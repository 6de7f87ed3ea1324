from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from keyfilters.scalespace import discrete_gaussian

VARIANCES = np.concatenate([[0.0], np.geomspace(1e-6, 25, 120), np.linspace(0, 25, 51)])


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_against_bessel_functions(radius: int, dtype: torch.dtype, tolerance: float) -> None:
    oracle = scipy.special.ive(np.abs(np.arange(-radius, radius + 1)), VARIANCES[:, None])
    kernel = discrete_gaussian(torch.tensor(VARIANCES, dtype=dtype), radius)
    assert kernel.dtype == dtype
    assert np.abs(kernel.numpy() - oracle).max() < tolerance


def test_a_number_is_taken_in_float64() -> None:
    for number in (0.7, np.float64(0.7), np.float32(0.75)):
        kernel = discrete_gaussian(number, 4)
        oracle = scipy.special.ive(np.abs(np.arange(-4, 5)), float(number))
        assert kernel.dtype == torch.float64 and np.abs(kernel.numpy() - oracle).max() < 1e-14


def test_exact_impulse_unit_sum_variance_and_semigroup() -> None:
    assert discrete_gaussian(0.0, 2).tolist() == [0, 0, 1, 0, 0]
    kernel = discrete_gaussian(torch.tensor([0.7, 2.0, 2.7], dtype=torch.float64), 40)
    n = torch.arange(-40, 41, dtype=torch.float64)
    torch.testing.assert_close(kernel.sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((kernel * n**2).sum(-1), torch.tensor([0.7, 2.0, 2.7]).double())
    both = np.convolve(kernel[0], kernel[1], mode="same")
    assert np.abs(both - kernel[2].numpy()).max() < 1e-14


def test_gradient_also_at_zero() -> None:
    variance = torch.tensor([1e-3, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: discrete_gaussian(s, 4), variance)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    # dT/ds = half the second difference of T, which for the impulse is (1, -2, 1) / 2.
    for tap, slope in ((1, 0.5), (2, -1.0), (0, 0.0)):
        (gradient,) = torch.autograd.grad(discrete_gaussian(zero, 2)[0, tap], zero)
        assert gradient.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize("variance", [-1.0, float("nan"), float("inf")])
def test_bad_variance(variance: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        discrete_gaussian(variance, 3)


def test_whole_numbers_and_windows_without_width() -> None:
    whole = discrete_gaussian(torch.tensor([1, 4]), 3)
    assert whole.dtype == torch.float64
    assert torch.equal(whole, discrete_gaussian(torch.tensor([1.0, 4.0]).double(), 3))
    with pytest.raises(ValueError, match="radius"):
        discrete_gaussian(1.0, -1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    variance = torch.tensor([0.3, 1.0, 4.0], dtype=dtype)
    kernel = discrete_gaussian(variance, 3)
    assert kernel.dtype == dtype
    assert torch.equal(kernel, discrete_gaussian(variance.float(), 3).to(dtype))


def test_autocast_changes_nothing() -> None:
    variance = torch.tensor([0.3, 1.0, 4.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = discrete_gaussian(variance, 3)
    assert torch.equal(kernel, discrete_gaussian(variance, 3))


def test_vmap_and_compile_see_no_value_and_give_the_same() -> None:
    variances = torch.tensor([0.0, 0.3, 1.0, 25.0], dtype=torch.float64)
    expected = discrete_gaussian(variances, 3)
    mapped = torch.func.vmap(lambda s: discrete_gaussian(s, 3))(variances)
    torch.testing.assert_close(mapped, expected, atol=1e-14, rtol=0)
    compiled = torch.compile(discrete_gaussian, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(variances, 3), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("number", [0.7, torch.tensor([0.0, 0.7])])
def test_another_default_device_changes_nothing(number: float | torch.Tensor) -> None:
    radius = 23  # of no other test, so that no table is kept of it
    with torch.device("meta"):
        kernel = discrete_gaussian(number, radius)
    assert kernel.device.type == "cpu"
    assert torch.equal(kernel, discrete_gaussian(number, radius))

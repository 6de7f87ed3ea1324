"""The rotated anisotropic filters: defining properties, and the special cases known before."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from keyfilters.receptive_fields.families import family
from keyfilters.scalespace import discrete_gaussian


def drawer(name: str) -> Callable[..., torch.Tensor]:
    form = family(f"rotated {name}")
    return lambda *values: form.render(torch.stack(values[:-1], dim=1), values[-1])


rotated_smoothing, rotated_edge, rotated_second = map(
    drawer, ("smoothing", "edge", "second derivative")
)


def parameters(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value], dtype=torch.float64) for value in values)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("scales", [(0.6, 1.5), (1.2, 0.4), (0.9, 0.9)])
def test_sum_and_covariance_are_exact(angle: float, scales: tuple[float, float]) -> None:
    drawn = rotated_smoothing(*parameters(*scales, angle), (31, 31))[0].numpy()
    y, x = np.meshgrid(np.arange(15, -16, -1), np.arange(-15, 16), indexing="ij")
    assert drawn.sum() == pytest.approx(1, abs=1e-12)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-math.sin(angle), math.cos(angle)])
    expected = scales[0] ** 2 * np.outer(along, along) + scales[1] ** 2 * np.outer(across, across)
    found = [[(drawn * p * q).sum() for q in (x, y)] for p in (x, y)]
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (6, 4)])
def test_without_rotation_it_is_the_separable_form(size: tuple[int, int]) -> None:
    sigma, across, none = parameters(0.7, 1.3, 0.0)
    scales = torch.stack([sigma, across], dim=1)
    for rotated, name in (
        (rotated_smoothing, "x:0 y:0"),
        (rotated_edge, "x:d y:0"),
        (rotated_second, "x:dd y:0"),
    ):
        expected = family(name).render(scales, size)
        torch.testing.assert_close(rotated(sigma, across, none, size), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("angle", [0.4, 2.0])
def test_with_one_scale_it_is_the_oriented_form(angle: float) -> None:
    sigma, phi = parameters(0.9, angle)
    for rotated, name in (
        (rotated_edge, "oriented edge"),
        (rotated_second, "oriented second derivative"),
    ):
        expected = family(name).render(torch.stack([sigma, phi], dim=1), (7, 7))
        drawn = rotated(sigma, sigma, phi, (7, 7))
        torch.testing.assert_close(drawn, expected, atol=1e-12, rtol=0)


def test_a_quarter_turn_turns_the_array() -> None:
    sigma, across, phi = parameters(0.6, 1.4, 0.35)
    for rotated in (rotated_smoothing, rotated_edge, rotated_second):
        here = rotated(sigma, across, phi, (7, 7))[0]
        turned = rotated(sigma, across, phi + math.pi / 2, (7, 7))[0]
        torch.testing.assert_close(turned, here.rot90(), atol=1e-12, rtol=0)  # counter-clockwise


def test_largest_scale_of_the_window_meets_no_copy_of_itself() -> None:
    for side in (5, 7, 11):
        top, zero = parameters(side / 2, 0.0)
        kernel = discrete_gaussian(top**2, side // 2)[0]
        drawn = rotated_smoothing(top, top, zero, (side, side))[0]
        torch.testing.assert_close(drawn, kernel[:, None] * kernel, atol=1e-9, rtol=0)

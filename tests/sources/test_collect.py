"""What all readers hand on: convolutions whose numbers cannot be right, and very large ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import keyfilters as kf
from keyfilters.sources.collect import Collector, Geometry


@pytest.mark.parametrize(
    ("layout", "shape", "geometry", "word"),
    [
        ("oiyx", (4, 1, 3), Geometry(4), "laid out"),
        ("oiyx", (4, 1, 0, 3), Geometry(4), "laid out"),
        ("oiyx", (4, 1, 3, 3), Geometry(0), "0 groups"),
        ("oiyx", (4, 1, 3, 3), Geometry(3), "3 groups"),
        ("ioyx", (4, 1, 3, 3), Geometry(3, transposed=True), "3 groups"),
        ("ioyx", (2, 4, 3, 3), Geometry(4, transposed=True), "4 groups"),
        ("oiyx", (4, 1, 3, 4), Geometry(4), "36 weights"),
    ],
)
def test_numbers_that_fit_no_convolution(
    layout: str, shape: tuple[int, ...], geometry: Geometry, word: str
) -> None:
    collector = Collector("net")
    with pytest.raises(ValueError, match=word):
        collector.kernel("dw", layout, shape, lambda: np.ones(36, np.float32), geometry)
    assert not collector.bank().layers


def test_a_kernel_of_far_too_many_numbers_is_named_and_not_loaded() -> None:
    state: dict[str, Any] = {
        "huge.weight": torch.zeros(1, 1, 1, 1).expand(2**21, 1, 6, 6),
        "dw.weight": torch.ones(4, 1, 3, 3),
    }
    bank = kf.read(state)
    assert [x.name for x in bank.layers] == ["dw"]
    [(name, why)] = bank.skipped
    assert name == "state_dict/huge" and str(2**21 * 36) in why

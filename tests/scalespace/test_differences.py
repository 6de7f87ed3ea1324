from __future__ import annotations

import pytest
import torch

from keyfilters.scalespace import difference, discrete_gaussian
from keyfilters.scalespace.differences import differences_of_gaussian


def test_literal_values() -> None:
    squares = torch.tensor([4.0, 1.0, 0.0, 1.0, 4.0])
    assert difference(squares, "d").tolist() == [-2, 0, 2]
    assert difference(squares, "d+").tolist() == [-1, 1, 3]
    assert difference(squares, "d-").tolist() == [-3, -1, 1]
    assert difference(squares, "dd").tolist() == [2, 2, 2]
    assert difference(squares, "0").tolist() == [1, 0, 1]
    assert difference(squares, "average+").tolist() == [0.5, 0.5, 2.5]


def test_border_taps_are_those_of_the_untruncated_kernel() -> None:
    wide = difference(discrete_gaussian(2.0, 20), "d")
    cut = differences_of_gaussian(2.0, 2, ("d",))[0]
    torch.testing.assert_close(cut, wide[17:22])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown operator 'ddd'"):
        difference(torch.zeros(5), "ddd")
    with pytest.raises(ValueError, match="at least 3 taps"):
        difference(torch.zeros(2), "d")

from __future__ import annotations

import numpy as np
import pytest
import torch

from keyfilters.errors import KeyFiltersError
from keyfilters.sizes import as_size, as_window, parse_size, tap_offsets


def test_a_size_is_decided_once() -> None:
    for given in (7, np.int64(7), (7, 7), [7, 7], np.array([7, 7])):
        assert as_window(given) == (7, 7) and as_size(as_window(given)) == 7
    assert as_size(as_window((1, 31))) == (1, 31)
    for text, window in (("7", (7, 7)), ("1x7", (1, 7)), (" 7 x 1 ", (7, 1)), ("2×4", (2, 4))):
        assert parse_size(text) == window


@pytest.mark.parametrize("size", [0, -3, 2.5, "7", (1, 2, 3), (0, 3), None, (3, 1.5)])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(KeyFiltersError, match="expected a size"):
        as_window(size)


@pytest.mark.parametrize("text", ["", "x", "1x", "7.5", "1x2x3", "-3", "0"])
def test_what_is_no_size_on_a_command_line(text: str) -> None:
    with pytest.raises(KeyFiltersError, match="size"):
        parse_size(text)


def test_coordinates_are_centred_between_taps_where_a_side_is_even() -> None:
    for taps in range(1, 9):
        offsets = tap_offsets(taps)
        assert offsets.sum() == 0 and torch.equal(offsets, -offsets.flip(0))
        assert (offsets.diff() == 1).all() and (taps % 2 == 1) == (0.0 in offsets.tolist())
    assert tap_offsets(4, torch.ones(1)).dtype == torch.float32

from __future__ import annotations

import pytest

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.key_names import parse_key_name
from keyfilters.query_strings import parse, whole_number


def test_values_are_numbers_texts_and_lists() -> None:
    assert parse("a?n=3&x=0.5&s=keep&l=1,b") == (
        "a",
        {"n": 3, "x": 0.5, "s": "keep", "l": [1, "b"]},
    )


def test_only_plain_decimal_numbers_are_numbers() -> None:
    _, options = parse("a?x=nan&y=inf&z=1_0&u=-1.5e-3&v=.5&w=0x10&i=-7")
    assert options == {
        "x": "nan", "y": "inf", "z": "1_0", "u": -0.0015, "v": 0.5, "w": "0x10", "i": -7,
    }  # fmt: skip


@pytest.mark.parametrize("asked", ["a?x", "a?=1", "a?x=1&x=2", "a?x=1&"])
def test_what_cannot_be_read_is_told(asked: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match="NAME\\?key=value is expected"):
        parse(asked)


@pytest.mark.parametrize("text", ["9" * 5000, "²", "-1", "1.5", ""])
def test_what_is_no_number_is_refused(text: str) -> None:
    """Python refuses to read numbers of more than 4,300 digits."""
    assert whole_number(text) is None
    for name in (f"random:{text}", f"lines:{text}"):
        with pytest.raises(KeyFiltersError, match="number of keys"):
            parse_key_name(name)

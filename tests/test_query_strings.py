from __future__ import annotations

import pytest

import keyfilters as kf
from keyfilters.query_strings import parse


def test_values_are_numbers_texts_and_lists() -> None:
    assert parse("a?n=3&x=0.5&s=keep&l=1,b") == (
        "a",
        {"n": 3, "x": 0.5, "s": "keep", "l": [1, "b"]},
    )


@pytest.mark.parametrize("asked", ["a?x", "a?=1", "a?x=1&x=2", "a?x=1&"])
def test_what_cannot_be_read_is_told(asked: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match="NAME\\?key=value is expected"):
        parse(asked)

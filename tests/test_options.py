from keyfilters.options import differing


def test_lists_and_tuples_are_the_same() -> None:
    assert differing({"a": {"x": (1, 2)}}, {"a": {"x": [1, 2]}}) == []
    assert differing({"a": {"x": (1, 2)}}, {}) == ["a.x (there [1, 2], asked absent)"]

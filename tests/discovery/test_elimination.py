from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keyfilters as kf
from keyfilters.discovery.elimination import eliminate, exchange, select


def naive(gains: np.ndarray) -> tuple[list[int], list[float]]:
    """Drop the candidate without which the value is largest, looking at everything every time."""
    alive, order, values = list(range(gains.shape[1])), [], []
    while True:
        values.append(gains[:, alive].max(1).sum())
        if len(alive) == 1:
            return [*order, alive[0]], values
        left = [gains[:, [c for c in alive if c != d]].max(1).sum() for d in alive]
        order.append(alive.pop(int(np.argmax(left))))


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), count=st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_incremental_elimination_equals_the_naive_one(seed: int, n: int, count: int) -> None:
    # Whole numbers, so that sums are exact and ties are ties.
    gains = np.random.default_rng(seed).integers(0, 40, (n, count)).astype(np.float64)
    order, values = naive(gains)
    found = eliminate(gains)
    assert found.order.tolist() == order
    np.testing.assert_array_equal(found.values, values)
    assert found.survivors(1)[0] == order[-1]


def value(gains: np.ndarray, chosen: np.ndarray) -> float:
    return float(gains[:, chosen].max(1).sum())


@pytest.mark.parametrize("seed", range(6))
def test_exchange_is_never_worse_and_no_single_swap_is_left(seed: int) -> None:
    gains = np.random.default_rng(seed).random((80, 10)) ** 3
    for start in (eliminate(gains).survivors(3), select(gains, 3)):
        found = exchange(gains, start)
        assert value(gains, found) >= value(gains, start)
        assert len(set(found.tolist())) == 3
        for i, c in itertools.product(range(3), range(10)):
            swapped = found.copy()
            swapped[i] = c
            assert value(gains, swapped) <= value(gains, found) * (1 + 1e-9)


def test_as_many_swaps_as_are_allowed() -> None:
    gains = np.random.default_rng(1).random((80, 12)) ** 3
    start = np.array([0, 1, 2, 3])
    values = [value(gains, exchange(gains, start, rounds=rounds)) for rounds in (0, 1, 2, 100)]
    assert values[0] == value(gains, start) and values == sorted(set(values))


def test_selection_takes_the_best_first() -> None:
    gains = np.random.default_rng(0).random((50, 6))
    assert select(gains, 1)[0] == gains.sum(0).argmax()
    assert sorted(select(gains, 6).tolist()) == list(range(6))


def test_bad_tables_are_refused() -> None:
    for gains, message in (
        (np.ones(3), r"shape \(n, N\), got \(3,\)"),
        (np.ones((0, 3)), r"shape \(n, N\)"),
        (np.array([[1.0, np.nan]]), "finite and not negative"),
        (np.array([[1.0, -1.0]]), "finite and not negative"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=message):
            eliminate(gains)
    with pytest.raises(kf.KeyFiltersError, match="cannot choose 4 of 3 candidates"):
        select(np.ones((2, 3)), 4)

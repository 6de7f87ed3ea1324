"""What makes the tests of surgery quick."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def few_matching_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Match the null's covariance less closely: a second a kernel size for a few tiny filters."""
    monkeypatch.setattr("keyfilters.nulls.MATCHING_STEPS", 3)

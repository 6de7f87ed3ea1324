from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.receptive_fields import (
    METHODS,
    PUBLISHED,
    PUBLISHED_OPERATORS,
    published_filters,
    published_parameters,
)


def test_every_method_has_its_eight_filters() -> None:
    assert tuple(f"lindeberg2026-{method}" for method in METHODS) == PUBLISHED
    for name in PUBLISHED:
        frame = published_parameters(name)
        assert frame["filter"].tolist() == list(range(1, 9))
        assert tuple(frame["operator"]) == PUBLISHED_OPERATORS
        assert frame["alpha"].notna().tolist() == [i == 6 for i in range(8)]
        assert published_filters(name, size=5).shape == (8, 5, 5)


@pytest.mark.parametrize("method", METHODS)
def test_published_scales_and_residuals(shared: Path, method: str) -> None:
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    frame, drawn = published_parameters(method), published_filters(method)
    for i, row in enumerate(reference["published_fits"][method]):
        for column in ("sigma_x", "sigma_y", "alpha"):
            if column in row:
                assert frame.loc[i, column] == pytest.approx(row[column], abs=5.1e-5)
        error = drawn[i] - np.array(reference["normalised_filters"][str(i + 1)])
        assert np.abs(error).sum() == pytest.approx(row["l1_residual"], abs=1e-3)
        assert np.linalg.norm(error) == pytest.approx(row["l2_residual"], abs=1e-3)


def test_centred_correlation_with_the_learned_filters(shared: Path) -> None:
    """A flip of y, as in the released generator, would leave filters 1 and 3 uncorrelated."""
    learned, _ = kf.receptive_fields.read_filters(shared / "master_key_filters_babaiee2025.txt")
    cosine = [
        abs(np.corrcoef(f.ravel(), m.ravel())[0, 1])
        for f, m in zip(learned, published_filters("A"), strict=True)
    ]
    expected = [0.842, 0.944, 0.914, 0.904, 0.937, 0.942, 0.997, 0.994]
    assert cosine == pytest.approx(expected, abs=2e-3)


def test_unknown_method() -> None:
    with pytest.raises(kf.KeyFiltersError, match="nearest names are: lindeberg2026-"):
        published_parameters("lindeberg2026-Z")
    with pytest.raises(kf.KeyFiltersError, match="expected one of lindeberg2026-A"):
        published_parameters("?")
    with pytest.raises(kf.KeyFiltersError, match="no published keys of 2×2"):
        published_filters("B", size=2)

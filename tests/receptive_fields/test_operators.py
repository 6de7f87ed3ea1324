from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import keyfilters as kf
from keyfilters.receptive_fields import OPERATORS, PUBLISHED_OPERATORS, operator


def arguments(name: str) -> tuple[torch.Tensor, ...]:
    x, y = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.7, 0.4]).double()
    form = operator(name)
    return (x, x, y) if form.sharpens else (x, x) if form.isotropic else (x, y)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_two_borders_differ_in_the_outermost_taps_only(name: str) -> None:
    exact, published = (
        operator(name).render(*arguments(name), size=7, border=border)
        for border in ("exact", "published")
    )
    torch.testing.assert_close(exact[:, 1:-1, 1:-1], published[:, 1:-1, 1:-1])
    wide = operator(name).render(*arguments(name), size=21)
    torch.testing.assert_close(exact, wide[:, 7:-7, 7:-7])
    form = operator(name).family
    x, *_, last = arguments(name)
    parameters = torch.stack([x, last][: len(form.parameters)], dim=1)
    assert torch.equal(exact, form.render(parameters, (7, 7)))


def test_y_points_up_while_rows_run_down() -> None:
    half = torch.tensor([0.0]).double()
    rows = {name: operator(name).render(half, half, size=3)[0] for name in ("dy+", "dy-", "dx+")}
    # δy+ takes f(y) from f(y + 1): of an impulse, +1 at y = −1, the row below the centre.
    assert rows["dy+"].tolist() == [[0, 0, 0], [0, -1, 0], [0, 1, 0]]
    assert rows["dy-"].tolist() == [[0, -1, 0], [0, 1, 0], [0, 0, 0]]
    assert rows["dx+"].tolist() == [[0, 0, 0], [1, -1, 0], [0, 0, 0]]


def test_against_the_published_templates(shared: Path) -> None:
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    assert [reference["operators"][str(i)] for i in range(1, 9)] == list(PUBLISHED_OPERATORS)
    for row in reference["published_fits"]["B"]:
        form = operator(reference["operators"][str(row["filter"])])
        x, y, alpha = torch.tensor([[row["sigma_x"]], [row["sigma_y"]], [row.get("alpha", 0)]],
                                   dtype=torch.float64)  # fmt: skip
        drawn = form.render(x, y, alpha if form.sharpens else None, size=7)[0]
        template = reference["templates_method_B"][str(row["filter"])]
        np.testing.assert_allclose(drawn, template, atol=1e-7)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("factor", [0.01, -3.0])
def test_normalizing_undoes_amplitude(name: str, factor: float) -> None:
    drawn = operator(name).render(*arguments(name), size=15)
    torch.testing.assert_close(operator(name).normalize(factor * drawn), drawn, atol=2e-3, rtol=0)


def test_bad_input() -> None:
    with pytest.raises(kf.KeyFiltersError, match="'laplacien'; the nearest names are: laplacian"):
        operator("laplacien")
    with pytest.raises(kf.KeyFiltersError, match=r"'q'; expected one of dx, dy, dx\+"):
        operator("q")
    one = torch.ones(1)
    with pytest.raises(kf.KeyFiltersError, match="at least 3 taps a side"):
        operator("dx").render(one, one, size=(2, 4))
    with pytest.raises(kf.KeyFiltersError, match="has one scale"):
        operator("laplacian").render(one, 2 * one, size=5)
    with pytest.raises(kf.KeyFiltersError, match="'sharpen' needs alpha"):
        operator("sharpen").render(one, one, size=5)
    with pytest.raises(kf.KeyFiltersError, match="'dx' has no alpha"):
        operator("dx").render(one, one, one, size=5)
    with pytest.raises(kf.KeyFiltersError, match="border must be one of"):
        operator("dx").render(one, one, size=5, border="zero")  # type: ignore[arg-type]

from __future__ import annotations

from pathlib import Path

import keyfilters as kf
from keyfilters.report.check_page import FILTERS, LAYERS, write_check_report
from tests.inspection.sick import checkerboard, healthy, one_nan, spoiled


def page(found: object, tmp_path: Path) -> str:
    return write_check_report(found, tmp_path / "check.html").read_text()  # type: ignore[arg-type]


def test_every_finding_and_its_filters(tmp_path: Path) -> None:
    found = kf.check(spoiled(spoiled(healthy(), one_nan), checkerboard, slice(2, 3)))
    html = page(found, tmp_path)
    [few] = found.findings["channels"][found.findings["rule"] == "non-finite"]
    assert html.count("<img") == len(few) + FILTERS  # of the checkerboards, the first
    for row in found.findings.to_dict("records"):
        assert f"<b>{row['layer']}</b>" in html
    for rule in found.rules:
        assert f"<td>{rule.name}</td>" in html


def test_names_are_text_and_layers_have_an_end(tmp_path: Path) -> None:
    bank = spoiled(healthy(LAYERS + 3), one_nan, slice(None))
    for i, layer in enumerate(bank.layers):
        object.__setattr__(layer, "name", f"<b>{i}")
    html = page(kf.check(bank), tmp_path)
    assert html.count("<img") == LAYERS and "<b><b>" not in html and "&lt;b&gt;10" in html


def test_nothing_found(tmp_path: Path) -> None:
    html = page(kf.check(healthy()), tmp_path)
    assert "<img" not in html and "nothing found" in html

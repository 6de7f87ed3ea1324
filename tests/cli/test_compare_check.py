from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from keyfilters.inspection import RULES
from tests.cli.test_cli import run
from tests.inspection.sick import healthy, one_nan, spoiled, untrained


@pytest.fixture
def well(tmp_path: Path) -> Path:
    healthy().save(tmp_path / "well.safetensors")
    return tmp_path / "well.safetensors"


@pytest.fixture
def ill(tmp_path: Path) -> Path:
    spoiled(healthy(), one_nan).save(tmp_path / "ill.safetensors")
    return tmp_path / "ill.safetensors"


def test_check_ends_with_one_only_if_strict(
    capsys: pytest.CaptureFixture[str], well: Path, ill: Path
) -> None:
    code, text, error = run(capsys, "check", str(well), "--strict")
    assert (code, error) == (0, "") and "nothing" in text
    assert run(capsys, "check", str(ill))[0] == 0
    code, text, error = run(capsys, "check", str(ill), "--strict")
    assert (code, error) == (1, "") and "non-finite" in text and "conv1" in text
    assert run(capsys, "check", str(ill), "--strict", "--off", "non-finite")[0] == 0


def test_notes_are_no_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def some(w, rng):  # type: ignore[no-untyped-def]
        w[::10] = 0
        return w

    spoiled(healthy(), some).save(tmp_path / "few.safetensors")
    code, text, _ = run(capsys, "check", str(tmp_path / "few.safetensors"), "--strict")
    assert code == 0 and "dead" in text and "note" in text


def test_check_writes_for_machines(
    capsys: pytest.CaptureFixture[str], ill: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, _ = run(capsys, "check", str(ill), "--format", "json", "--out", str(out))
    assert code == 0 and json.loads(text)["ok"] is False
    assert {p.name for p in out.iterdir()} == {
        "findings.csv",
        "check.json",
        "check.sarif",
        "report.html",
    }
    assert pd.read_csv(out / "findings.csv")["rule"].tolist() == ["non-finite"]
    code, text, _ = run(capsys, "check", str(ill), "--format", "sarif")
    assert json.loads(text) == json.loads((out / "check.sarif").read_text())


def test_check_prints_the_worst_of_each_rule_or_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spoiled(healthy(), one_nan, slice(1, 3)).save(tmp_path / "two.safetensors")
    for arguments, lines in (((), 1), (("--all",), 2)):
        code, text, _ = run(capsys, "check", str(tmp_path / "two.safetensors"), *arguments)
        rows = [line for line in text.splitlines() if line.startswith("│ non-finite")]
        assert code == 0 and len(rows) == lines


def test_check_prints_what_every_rule_measures(
    capsys: pytest.CaptureFixture[str], well: Path
) -> None:
    code, text, _ = run(capsys, "check", str(well), "--rules", "--off", "dead")
    assert code == 0
    told = {line.partition(" (")[0] for line in text.splitlines() if "; above " in line}
    assert told == set(RULES) - {"dead"}


def test_check_of_an_unknown_rule(capsys: pytest.CaptureFixture[str], well: Path) -> None:
    code, _, error = run(capsys, "check", str(well), "--off", "deed")
    assert code == 2 and "dead" in error


def test_compare_writes_a_page_and_tables(
    capsys: pytest.CaptureFixture[str], well: Path, ill: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, error = run(capsys, "compare", str(well), str(ill), str(well), "--out", str(out))
    assert (code, error) == (0, "") and "equal to the bit" in text
    names = {p.name for p in out.iterdir()}
    assert names == {
        "report.html",
        "layers.csv",
        "totals.csv",
        "flow.csv",
        "steps.csv",
        "filters.parquet",
    }
    assert len(pd.read_csv(out / "steps.csv")) == 3
    html = (out / "report.html").read_text()
    assert "conv1" in html and 'src="http' not in html and "<svg" in html
    assert len(html.split("<svg")) == 5  # steps, patterns, cosines and coverage
    code, text, _ = run(capsys, "compare", str(well), str(ill))
    assert code == 0 and "1 lost" in text


def test_compare_puts_steps_into_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = [str(tmp_path / f"step-{i}.safetensors") for i in (0, 100, 20)]
    for path in paths:
        healthy().save(path)
    out = tmp_path / "out"
    code, text, _ = run(capsys, "compare", *paths, "--out", str(out))
    assert code == 0 and "order" in text
    steps = pd.read_csv(out / "steps.csv")["name"].tolist()
    assert [name.partition("step-")[2].partition(".")[0] for name in steps] == ["0", "20", "100"]


def test_compare_prints_patterns_that_became_others(
    capsys: pytest.CaptureFixture[str], well: Path, tmp_path: Path
) -> None:
    dead = spoiled(healthy(), lambda w, rng: 0 * w, slice(2, 3))
    spoiled(dead, untrained).save(tmp_path / "new.safetensors")
    title = "patterns that became others"
    code, text, _ = run(capsys, "compare", str(well), str(tmp_path / "new.safetensors"))
    assert code == 0 and title in text
    assert sum("conv2" in row and "–" in row for row in text.splitlines()) == 1
    assert title not in run(capsys, "compare", str(well), str(well))[1]


def test_compare_needs_two(capsys: pytest.CaptureFixture[str], well: Path) -> None:
    code, _, error = run(capsys, "compare", str(well))
    assert code == 2 and "keyfilters compare" in error


def test_atlas_like_one_that_ships(
    capsys: pytest.CaptureFixture[str], well: Path, tmp_path: Path
) -> None:
    out = tmp_path / "named"
    code, text, error = run(capsys, "atlas", str(well), "--like", "zoo-5x5", "--out", str(out))
    assert (code, error) == (0, "") and "covariance" in text
    assert len(pd.read_parquet(out / "filters.parquet")) == 384
    code, _, error = run(capsys, "atlas", str(well), "--like", "zoo-5x", "--out", str(out))
    assert code == 2 and "zoo-5x5" in error

"""What is measured of a paper, and what is said of that which cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

import keyfilters as kf
from keyfilters.cli import app
from keyfilters.receptive_fields import published_filters
from keyfilters.reproduction import PAPERS, Inputs, list_figures, reproduce
from keyfilters.reproduction.figures import NEEDS


def test_every_figure_has_a_state_and_a_command() -> None:
    listed = list_figures()
    assert set(listed["known from"]) == {"paper", "review"}
    assert listed["command"].str.startswith("keyfilters ").all()
    for figures in PAPERS.values():
        names = [figure.name for figure in figures]
        assert len(names) == len(set(names))
        assert all(need in NEEDS for figure in figures for need in figure.needs)
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    assert {command.split()[1] for command in listed["command"]} <= verbs


def test_formula_of_the_differences_of_gaussians() -> None:
    found = reproduce("echos")
    assert found.rows["difference"].abs().max() < 6e-4
    assert found.figures["state"].tolist()[0] == "measured"
    assert all("needs" in state for state in found.figures["state"].tolist()[1:])


@pytest.fixture
def drawn_filters(tmp_path: Path) -> Path:
    """The published models of method B in place of the learned filters, with unknown amplitude."""
    file = tmp_path / "eight.npy"
    np.save(file, published_filters("B", border="published"))
    return file


def test_scales_of_filters_that_are_drawn_by_them(drawn_filters: Path) -> None:
    figure = next(f for f in PAPERS["modelling"] if f.name == "scales of method B")
    assert figure.measure is not None
    rows = figure.measure(Inputs(filters=drawn_filters))
    assert len(rows) == 17
    # A method of variances finds the scales that were drawn, whatever the amplitude.
    for row in rows[:12]:
        assert row.measured == pytest.approx(row.published, abs=0.005)


def test_published_figures(shared: Path) -> None:
    file = shared / "master_key_filters_babaiee2025.txt"
    found = reproduce("modelling", Inputs(filters=file))
    by_method = found.digest.set_index("figure")["largest difference"]
    for method in ("A", "A-joint", "B", "B-joint", "D2", "D-joint"):
        assert by_method[f"scales of method {method}"] < 0.002
    # Continuous optimisers come closer than the published grids; see the notes of the rows.
    assert by_method.drop(["separability"], errors="ignore").dropna().max() < 0.05


def test_what_is_missing_is_said_and_what_is_wrong_is_refused(tmp_path: Path) -> None:
    found = reproduce("modelling")
    assert found.rows.empty and found.figures["state"].str.contains("--filters|ImageNet").all()
    with pytest.raises(kf.KeyFiltersError, match="modelling"):
        reproduce("modeling")
    few = tmp_path / "few.npy"
    np.save(few, np.eye(3)[None])
    with pytest.raises(kf.KeyFiltersError, match="eight"):
        reproduce("modelling", Inputs(filters=few))
    assert reproduce("unveiling", Inputs(weights=tmp_path)).figures["state"].str.contains(
        "convnext", regex=False
    ).sum() == 3  # fmt: skip


def test_weights_of_a_folder(tmp_path: Path) -> None:
    """A small untrained network under the name of a published one."""
    torch.manual_seed(0)
    net = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
    torch.save(net.state_dict(), tmp_path / "convnextv2_tiny.fcmae_ft_in1k.pth")
    found = reproduce("unveiling", Inputs(weights=tmp_path))
    states = found.figures.set_index("figure")["state"]
    assert states["coverage of ConvNeXt V2"] == states["patterns"] == "measured"
    assert "convnext_tiny" in states["coverage of ConvNeXt"]
    coverage = found.rows[found.rows["published"] == "> 0.95"]
    assert len(coverage) == 1 and 0 <= coverage["null"].iloc[0] <= 1


def test_command_line(tmp_path: Path, drawn_filters: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, ["reproduce", "--list"])
    assert listed.exit_code == 0 and "echos" in re.sub(r"\W+", "", listed.output)
    one = run(app, ["reproduce", "echos", "--list"])
    assert one.exit_code == 0 and one.output.count("\n") < listed.output.count("\n")
    assert "unveiling" not in one.output and "echos" in re.sub(r"\W+", "", one.output)
    asked = run(app, ["reproduce"])
    assert asked.exit_code == 0
    assert asked.output == listed.output + f"name one to measure it: {', '.join(PAPERS)}\n"
    before = set(tmp_path.iterdir())
    assert run(app, ["reproduce", "masterkey"]).exit_code == 0
    assert set(tmp_path.iterdir()) == before
    out = tmp_path / "out"
    done = run(app, ["reproduce", "echos", "--out", str(out)])
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "babaiee2024echos" in page and not re.search("(src|href)=.http", page)
    assert {path.name for path in out.iterdir()} == {"report.html", "figures.csv", "measured.csv"}
    missing = run(app, ["reproduce", "modelling", "--filters", str(tmp_path / "no.txt")])
    assert isinstance(missing.exception, kf.KeyFiltersError)


def test_keys_found_stand_beside_filters_of_the_same_covariance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
    torch.save(net.state_dict(), tmp_path / "convnextv2_tiny.fcmae_ft_in1k.pth")
    figure = next(f for f in PAPERS["quest"] if f.name == "published keys found again")
    assert figure.measure is not None
    rows = figure.measure(Inputs(weights=tmp_path))
    assert len(rows) == 8 and all(0 < row.null < 1 for row in rows)
    # An untrained network has no keys: what is found there is no nearer than chance.
    assert abs(np.mean([row.measured - row.null for row in rows])) < 0.25

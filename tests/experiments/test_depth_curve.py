from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import keyfilters as kf
from keyfilters.experiments.depth_curve import KINDS, condition_name, train_on_first
from keyfilters.experiments.depth_curve import depth_curve as experiment
from keyfilters.experiments.depth_curve_findings import depth_curve_findings
from keyfilters.experiments.runs import Run
from keyfilters.experiments.trial import build_network, load
from tests.experiments.planted import planted
from tests.experiments.test_trial import DATA, SMALL

SETUP = replace(SMALL, depth=3)
SHARED = {**SETUP.to_dict(), "data": DATA}
LENDER = Run("lender", 1).folder


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    train_on_first(SHARED, 1, out / LENDER)
    return out


@pytest.mark.parametrize("layers", ["depthwise", "pointwise"])
@pytest.mark.parametrize(("kind", "tuned"), [("A", False), ("R", False), ("A", True)])
def test_the_first_layers_are_borrowed(lent: Path, layers: str, kind: str, tuned: bool) -> None:
    options: dict[str, Any] = {**SHARED, "layers": layers, "n": 2, "kind": kind, "tuned": tuned}
    options["lender"] = "" if kind == "R" else str(LENDER)
    folder = lent / Run(condition_name(layers, 2, kind, tuned), 0).folder
    folder.mkdir(parents=True)
    found = train_on_first(options, 0, folder)
    trained = load_file(folder / "model.safetensors")
    source = load_file(lent / LENDER / "model.safetensors")
    first = build_network(SETUP, load(DATA, SETUP, 0), 0).state_dict()
    of_layers = {"depthwise": (8, 1, 3, 3), "pointwise": (8, 8, 1, 1)}[layers]
    names = [name for name, x in trained.items() if x.shape == of_layers]
    if layers == "pointwise":  # the first convolution of these small images is of 1×1 too
        names = ["stem.0.weight", *names]
    same_as = first if kind == "R" else source
    kept = [torch.equal(trained[name], same_as[name]) for name in names]
    assert kept[:3] == ([False] * 3 if tuned else [True, True, False])
    others = [name for name in trained if name not in names and "num_batches" not in name]
    assert not any(torch.equal(trained[name], first[name]) for name in others)
    frozen = 0 if tuned else sum(trained[name].numel() for name in names[:2])
    assert found["trainable"] == found["parameters"] - frozen


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    means, options = {"learned": 80.0}, {"learned": {}}
    tops = {  # by kind: n = 1, 2, 3
        ("A", False): (80.0, 78.0, 76.0),
        ("B", False): (80.0, 80.0, 80.0),
        ("R", False): (79.0, 76.0, 74.0),
        ("B", True): (80.0, 80.0, 82.0),
        ("A", True): (80.0, 80.0, 80.0),
    }
    for kind in KINDS:
        for n, top in enumerate(tops[kind], 1):
            name = condition_name("depthwise", n, *kind)
            means[name] = top
            options[name] = {"layers": "depthwise", "n": n}
    found = depth_curve_findings(planted(tmp_path, means, options), tmp_path)
    told = dict(found.answers)
    costs = told["From which n on do the first n depthwise layers of another task cost accuracy, "
                 "frozen?"]  # fmt: skip
    assert costs.startswith("At depthwise A2B a loss is first found. ")
    same = told["From which n on do the first n depthwise layers of the same task cost accuracy, "
                "frozen?"]  # fmt: skip
    assert same.startswith("At no n is a loss found, and one beyond 0.")
    fall = told["Do depthwise layers of another task fall below those of the same?"]
    assert "depthwise B3B beats depthwise A3B by" in fall
    gain = told["Do depthwise layers that come from elsewhere and learn on give a gain?"]
    assert "depthwise B3B+ beats learned by" in gain
    lines = found.curves["depthwise layers"]
    assert {line.shape for line in lines.values()} == {(5, 4)}
    assert list(found.axes["depthwise layers"].at) == [0, 1, 2, 3]
    assert "cost accuracy, frozen? At depthwise A2B a loss is first found." in found.short


@pytest.mark.parametrize(("seeds", "told"), [(2, "Too few seeds to say"), (3, "Trend: at")])
def test_few_seeds_say_little(tmp_path: Path, seeds: int, told: str) -> None:
    means = {"learned": 80.0, condition_name("depthwise", 1, "A"): 70.0}
    options = {name: {"layers": "depthwise", "n": 1} if n else {} for n, name in enumerate(means)}
    table = planted(tmp_path, means, options)
    found = depth_curve_findings(table[table["seed"] < seeds], tmp_path)
    assert found.answers[0][1].startswith(told) and told in found.short
    assert ("Too few seeds to compare" in found.short) == (seeds == 2)


def test_every_run_is_asked_for_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(stages: Any, *_: Any) -> list[None]:
        seen.extend(stages)
        return [None]

    monkeypatch.setattr("keyfilters.experiments.depth_curve.run_stages", note)
    experiment(
        tmp_path, target=DATA, source="digits?classes=3,4", seeds=[4], depths=(1, 3), setup=SETUP
    )
    (lenders, _), (runs, _) = seen
    assert [(x.seed, x.options["data"], x.options["images_seed"]) for x in lenders] == [
        (5, DATA, 4),
        (5, "digits?classes=3,4", 4),
    ]
    folder = {"B": str(lenders[0].folder), "A": str(lenders[1].folder), "R": ""}
    base, *rest = runs
    assert base.condition == "learned" and base.options["data"] == DATA and "n" not in base.options
    assert len(rest) == 2 * 2 * len(KINDS) and {x.seed for x in rest} == {4}
    for one in rest:
        options = one.options
        assert options["lender"] == folder[options["kind"]] and options["data"] == DATA
        name = condition_name(options["layers"], options["n"], options["kind"], options["tuned"])
        assert one.condition == name and options["n"] in (1, 3)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"has 1 depthwise layers, asked: \(2,\)"):
        experiment(tmp_path, source=DATA, target=DATA, depths=(2,), setup=SMALL)
    with pytest.raises(kf.KeyFiltersError, match="images of digits are"):
        experiment(tmp_path, source="photos", setup=SMALL)

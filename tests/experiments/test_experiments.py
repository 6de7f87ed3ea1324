"""What every experiment is made of, and what comes out of a small one."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import EXPERIMENTS, Experiment, Shared, compare, run_experiment
from keyfilters.experiments.experiment import Panel
from keyfilters.experiments.filter_measures import explained as explained_of_a_network
from keyfilters.experiments.filter_measures import explained_filters, patterns_by_step
from keyfilters.experiments.questions import Contrast
from keyfilters.experiments.record import record_of
from keyfilters.experiments.run import Run
from keyfilters.experiments.run_parts import build_network, load, recipe_of
from keyfilters.experiments.single_run import MODEL, make_run
from keyfilters.experiments.source_networks import equal_steps
from tests.experiments.cheap_measures import explained
from tests.experiments.experiments import DATA, build
from tests.experiments.in_process import InProcess
from tests.training.test_parquet import write as write_parquet

Ran = tuple[Experiment, Path, dict[str, Any]]
NEXT = "convnext_atto?depths=1,1,0,0&dims=8,8,8,8&patch_size=1"


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Those experiments that other runs build on, each run once with one seed."""
    found = {}
    for name in ("replacement", "depth-curve"):
        experiment, out = build(name), tmp_path_factory.mktemp(name)
        found[name] = (experiment, out, run_experiment(experiment, out, executor=InProcess()))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_conditions_have_names_of_their_own_and_questions_find_them(name: str) -> None:
    experiment = build(name, seeds=2)
    rows = [json.dumps(run.factors) for run in experiment.runs]
    labels = {experiment.label(json.loads(row)) for row in rows}
    assert len(labels) == len(set(rows)) == len(rows) / 2
    assert all(list(run.factors) == experiment.factors for run in experiment.runs)
    assert len({run.key for run in experiment.runs}) == len(experiment.runs)
    known = {name: {run.factors[name] for run in experiment.runs} for name in experiment.factors}
    for question in experiment.questions:
        levels = getattr(question, "one", {})
        assert isinstance(levels, str) or set(levels) <= set(known)


@pytest.mark.parametrize("name", ["transfer", "depth-curve", "frozen-keys"])
def test_source_networks_differ_in_their_first_weights_but_not_in_their_images(name: str) -> None:
    experiment = build(name, seeds=2)
    lent = [(run, source) for run in experiment.runs for source in run.sources.values()]
    assert lent
    for run, source in lent:
        assert source.seed == run.seed + 1
        if source.options["data"] == run.options["data"]:
            one, other = (load(x.options, x.seed).images for x in (run, source))
            assert {x.numpy().tobytes() for x in one} == {x.numpy().tobytes() for x in other}


def test_the_record_of_an_experiment(ran: dict[str, Ran]) -> None:
    experiment, out, record = ran["replacement"]
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert len(record["runs"]) == len(experiment.runs) and not record["failures"]
    assert {row["verdict"] for row in record["comparisons"]} == {"few"}
    assert record["conditions"][0]["mean"] == record["runs"][0]["top1"]
    assert record["conditions"][1]["before"] == record["runs"][1]["before"]
    assert {len(chart["lines"]) for chart in record["charts"]} == {3, 4}
    again = run_experiment(experiment, out, executor=InProcess())
    assert again["runs"] == record["runs"], "finished runs are found again"


def test_what_was_replaced(ran: dict[str, Ran]) -> None:
    """Every filter is a key of the set, nearest to the trained network's where that chooses."""
    experiment, out, record = ran["replacement"]
    filters = {}
    for run in experiment.runs:
        filters[experiment.label(run.factors)] = kf.read(out / run.folder / MODEL).stack(3)[0]
    trained = filters["learned filters"]
    tuned = {name: x for name, x in filters.items() if name.startswith("tuned")}
    assert np.array_equal(tuned["tuned, filters frozen"], trained)
    assert not np.array_equal(tuned["tuned, learned filters"], trained)
    keys = kf.KeySet.published("lindeberg2026-B", 3)
    expected = keys.reconstruct(*keys.assign(trained)[:3])
    for name in ("tuned, 8 idealised keys, nearest", "from early, by trained, 8 idealised keys"):
        [found] = [x for label, x in filters.items() if label.startswith(name)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    before = {row["label"]: row["before"] for row in record["conditions"]}
    assert before["tuned, filters frozen"] == record["conditions"][0]["mean"]


def test_first_layers_come_from_elsewhere(ran: dict[str, Ran]) -> None:
    experiment, out, _ = ran["depth-curve"]
    for run in experiment.runs:
        if run.factors["layers"] == "depthwise" and run.sources and not run.factors["tuned"]:
            theirs, ours = (
                kf.read(out / x.folder / MODEL).stack(3)[0] for x in (run.sources["lender"], run)
            )
            assert np.array_equal(theirs, ours)
    kinds = {(run.factors["source"], run.factors["tuned"]) for run in experiment.runs}
    assert len(kinds) == 6


def test_structure_takes_filters_and_their_nulls_from_another_network(tmp_path: Path) -> None:
    for part, count in (("train", 80), ("test", 10)):
        write_parquet(tmp_path / f"{part}-00000-of-00001.parquet", [i % 2 for i in range(count)])
    names = ("of another network", "same covariance", "8 discovered keys", "8 random keys")
    data = f"hf:{tmp_path}"
    experiment = build("structure", data=data, other="", filters=("learned", *names), epochs=2.0)
    record = run_experiment(experiment, tmp_path / "out", executor=InProcess())
    assert len(record["runs"]) == 5 and not record["failures"]
    asked = {row["question"] for row in record["comparisons"]}
    assert len(asked) == 4, "only of filters that are there"
    assert sorted(record["matrices"][0]["columns"]) == ["another seed", "–"]
    found = {
        run.factors["filters"]: kf.read(tmp_path / "out" / run.folder / MODEL).stack(3)[0]
        for run in experiment.runs
    }
    lender = experiment.runs[1].sources["source"]
    assert lender.options["changes"] == experiment.runs[0].options["changes"], "trained as long"
    theirs = kf.read(tmp_path / "out" / lender.folder / MODEL)
    filters = theirs.stack(3)[0]
    assert np.array_equal(found["of another network"], filters)
    noise = found["same covariance"]
    assert np.allclose(noise.std((1, 2)), filters.std((1, 2)), rtol=1e-4)
    assert not np.allclose(noise, filters, rtol=1e-2)
    keys = kf.KeySet.named("lines:8", 3, 0, bank=theirs)
    for name, kept in (("8 discovered keys", True), ("8 random keys", False)):
        residual = keys.assign(found[name])[3]
        assert bool((residual < 1e-5).all()) is kept


def test_noise_like_idealised_keys_is_drawn_from_them(tmp_path: Path) -> None:
    for part, count in (("train", 80), ("test", 10)):
        write_parquet(tmp_path / f"{part}-00000-of-00001.parquet", [i % 2 for i in range(count)])
    names = ("8 idealised keys", "8 keys of idealised covariance", "8 keys of idealised spectra")
    experiment = build("structure", data=f"hf:{tmp_path}", other="", filters=names, epochs=2.0)
    ideal, *others = experiment.runs
    needed = [[run.key for run in x.sources.values()] for x in others]
    assert needed == [[ideal.key]] * 2, "no other run is needed"
    run_experiment(experiment, tmp_path / "out", executor=InProcess())
    keys = kf.KeySet.published("lindeberg2026-B", 3)
    banks = [kf.read(tmp_path / "out" / x.folder / MODEL) for x in experiment.runs]
    drawn, *noise = (x.stack(3)[0] for x in banks)
    assert (keys.assign(drawn)[3] < 1e-5).all()
    for kind, filters in zip(("covariance", "phase"), noise, strict=True):
        assert (keys.assign(filters)[3] > 1e-3).all()
        wanted = kf.KeySet.named(f"{kind}:8", 3, 0, bank=banks[0])
        assert (wanted.assign(filters)[3] < 1e-5).all()


def test_the_larger_source_is_asked_for_and_trained_as_long() -> None:
    small = "digits?samples=70&classes=0,1,2"
    experiment = build("transfer", source=(small, DATA), pointwise=False)
    lenders = [run.sources["lender"].options for run in experiment.runs if run.sources]
    assert {x["changes"]["schedule"]["steps"] for x in lenders} == {1}
    assert [q.one["source"] for q in experiment.questions if "larger" in q.words] == [DATA]


def test_frozen_keys_take_the_filters_of_a_source_and_steps_are_equal() -> None:
    experiment = build("frozen-keys", steps=3)
    for run in experiment.runs:
        nearest = run.factors["assignment"] == "trained"
        assert ("assign_from=@lender" in run.options["treatment"]) is nearest is bool(run.sources)
        assert run.options["changes"]["schedule"]["steps"] == 3
    assert {run.factors["images"] for run in experiment.runs} == {100, 200}


def test_frozen_keys_may_come_from_the_filters_of_the_source_network() -> None:
    text = "keys?keys=covariance:8&keys_from=@lender&assignment=random"
    experiment = build("frozen-keys", condition=("learned", "keys?drawn=1", text), samples=(100,))
    learned, ideal, noise = experiment.runs
    assert not learned.sources and not ideal.sources and list(noise.sources) == ["lender"]
    assert noise.options["treatment"] == text
    assert experiment.label(noise.factors).startswith("8 keys of same covariance")


def test_qualities_change_what_they_name() -> None:
    experiment = build("emergence", quality=("usual", "steps=0.5", "lr=3", "width=4", "noise=1"))
    usual, *others = [run.options for run in experiment.runs]
    for other, changed in zip(others, ({"keep", "changes"}, {"changes"}, {"width"}, {"noise"}),
                              strict=True):  # fmt: skip
        assert {k for k in other if other.get(k) != usual.get(k)} <= changed
    assert others[1]["changes"]["optimiser"] == {"lr": 3}


def test_filters_are_measured_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "keyfilters.experiments.emergence.MEASURES", "tests.experiments.cheap_measures"
    )
    experiment = replace(build("emergence", epochs=4.0), extra={})
    record = run_experiment(experiment, tmp_path, executor=InProcess())
    row, [shares, keys, accuracy] = record["runs"][0], record["charts"]
    line = shares["lines"]["as usual"][0]
    assert shares["at"] == accuracy["at"] == [0, 1, 2, 4] and row["beyond"] == line[-1]
    assert keys["lines"]["as usual"][0] == [2 * x for x in line]
    network = build_network(experiment.runs[0].options, load(experiment.runs[0].options, 0), 0)
    path = tmp_path / experiment.runs[0].folder / "step-2.safetensors"
    network.load_state_dict(load_file(path))
    assert line[2] == pytest.approx(explained(network, 0)["beyond"])
    gained = [x - line[0] for x in line]
    if gained[-1] > 0:
        half = next(x for i, x in enumerate(shares["at"]) if min(gained[i:]) >= gained[-1] / 2)
        assert row["beyond_half"] == half


def test_shares_of_planted_filters() -> None:
    keys = kf.KeySet.published("lindeberg2026-B").filters
    generator = np.random.default_rng(0)
    index, scale = generator.integers(8, size=60), generator.normal(size=(60, 1, 1))
    filters = (scale * keys[index] + generator.normal(size=(60, 1, 1))).astype(np.float32)
    found = explained_filters(filters, seed=0)
    assert found["keys"] == pytest.approx(100, abs=1e-3) and found["explained"] > 95
    assert found["shuffled"] < 20 and found["covariance"] > found["shuffled"] + 50
    noise = explained_filters(generator.normal(size=(60, 7, 7)).astype(np.float32), seed=0)
    assert abs(noise["beyond"]) < 5 and abs(noise["keys_beyond"]) < 4


@pytest.mark.long
def test_patterns_step_by_step(tmp_path: Path) -> None:
    experiment = build("emergence", quality=("usual",), data="digits?samples=200&classes=0,1,2")
    record = run_experiment(experiment, tmp_path, executor=InProcess())
    chart = record["charts"][-1]
    assert chart["at"] == [0, 1, 2, 3] and "classified" in chart["lines"]
    kinds = [line[0][-1] for name, line in chart["lines"].items() if name != "classified"]
    assert sum(kinds) == pytest.approx(chart["lines"]["classified"][0][-1])


def test_patterns_of_too_few_filters_are_told(tmp_path: Path) -> None:
    found = patterns_by_step({"sources": {"seed-0": str(tmp_path)}}, 0, tmp_path)
    assert set(found) == {"why"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("initialization", {"condition": ("defalt",)}, "no initialisation is called 'defalt'"),
        ("transfer", {"target": ("digit",)}, "no data set is called 'digit'"),
        ("transfer", {"source": ("package:nothing",)}, "nothing"),
        ("frozen-keys", {"condition": ("kees",)}, "'kees' cannot be done"),
        ("frozen-keys", {"data": DATA}, "--samples says it too"),
        ("replacement", {"early": 2.0}, "a share between 0 and 1"),
        ("depth-curve", {"depths": (9,)}, "1 depthwise layers"),
        ("depth-curve", {"layer_kinds": ()}, "none"),
        ("depth-curve", {"layer_kinds": ("dense",)}, "dense"),
        ("emergence", {"quality": ("nose=1",)}, "'nose' cannot be changed"),
        ("emergence", {"quality": ("noise=2",)}, "at most 1"),
        ("emergence", {"quality": ("lr=fast",)}, "above 0"),
        ("emergence", {"quality": ("width=4",), "network": NEXT}, "those of convmixer"),
        ("initialization", {"network": "convmixer?size=7"}, "those of --sizes; leave out size"),
        ("structure", {"filters": ("learnd",)}, "'learnd'.*learned"),
        ("transfer", {"target": ("digits?samples=many",)}, "samples is no whole number"),
    ],
)
def test_what_the_user_can_mend(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        build(name, **changes)


def test_a_network_without_pointwise_layers_has_none_to_freeze() -> None:
    function = importlib.import_module("keyfilters.experiments.transfer").transfer
    shared = Shared(network="test_vit?img_size=8&patch_size=4", seeds=1, device="cpu")
    with pytest.raises(KeyFiltersError, match="no 1×1 convolutions"):
        function(shared, target=(DATA,))


def test_all_images_stand_beside_few() -> None:
    experiment = build("frozen-keys", samples=(0, 100), condition=("learned",))
    every = len(load({"data": "digits?classes=0,1,2"}, 0).images)
    assert [run.factors["images"] for run in experiment.runs] == [every, 100]


def test_trained_filters_are_the_source_of_idealised_first_ones(tmp_path: Path) -> None:
    conditions = ("default", "idealized", "idealized?std=keep")
    weight = np.random.default_rng(0).normal(size=(30, 3, 3)).astype(np.float32)
    bank = tmp_path / "bank.safetensors"
    kf.FilterBank([Layer("net", "conv", weight, None, None, 0.0)]).save(bank)
    experiment = build("initialization", condition=conditions, bank=str(bank), sizes=(3,))
    assert [run.options["treatment"] for run in experiment.runs] == [
        "learned",
        f"initialize:idealized?bank={bank}",
        f"initialize:idealized?std=keep&bank={bank}",
    ]
    assert [run.factors["scheme"] for run in experiment.runs] == [
        "default",
        "idealized",
        "idealized",
    ]


def test_filters_of_a_file_take_the_place_of_a_source_network(tmp_path: Path) -> None:
    bank = tmp_path / "lender.pth"
    torch.save({"conv.weight": torch.ones(8, 1, 3, 3)}, bank)
    names = ("learned", "of another network")
    experiment = build("structure", other=str(bank), filters=names)
    texts = {run.factors["source"]: run.options["treatment"] for run in experiment.runs}
    assert texts["other images"] == f"transfer?from={bank}&freeze=1"
    assert texts["another seed"] == "transfer?from=@source&freeze=1"


def test_the_filters_of_a_network_are_measured_as_its_filters() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 24, 3, groups=24)
    filters = conv.weight.detach().numpy()[:, 0]
    assert explained_of_a_network(nn.Sequential(conv), 0) == explained_filters(filters, 0)


MEASURE, STEPS = "tests.experiments.workers:measure", "tests.experiments.workers:steps"


def test_a_record_has_derived_columns_and_charts_of_further_runs(tmp_path: Path) -> None:
    rows = [
        Run({"gain": gain, "lost": lost}, seed, MEASURE, {"gain": gain, "places": 2 + lost})
        for gain in (0.0, 1.0)
        for lost in (0, 1)
        for seed in (0, 1)
    ]
    experiment = Experiment(
        name="made",
        title="?",
        explanation="",
        runs=rows,
        questions=[Contrast("More?", {"gain": 1.0}, {"gain": 0.0}, "twice")],
        panels=[Panel("top-1", at="places")],
        columns=("twice",),
        derive=lambda table, out: table.assign(twice=np.float64(2) * table["top1"]),
        extra={
            "patterns": Run({}, 0, STEPS, {"classified": [1.0, 2.0], "kind edge": [0.5, 1.5]}),
            "lost": Run({}, 0, MEASURE.replace("measure", "misbehave"),
                        {"manner": "raise", "always": True}),
        },
    )  # fmt: skip
    record = run_experiment(experiment, tmp_path, executor=InProcess())
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    for row in record["runs"]:
        assert row["twice"] == pytest.approx(2 * row["top1"])
    assert [row["estimate"] for row in record["comparisons"]] == pytest.approx([2.0, 2.0])
    own, patterns = record["charts"]
    assert own["at"] == [1, 2], "a run of other places is not drawn among these"
    assert {len(line) for line in own["lines"].values()} == {2} and len(own["lines"]) == 2
    assert patterns["title"] == "patterns" and patterns["at"] == [0, 10]
    assert patterns["lines"] == {"classified": [[1, 2]], "edge": [[0.5, 1.5]]}
    [problem] = record["failures"]
    assert problem.startswith("lost: ")


def test_epochs_needed_are_those_of_the_reference_of_the_seed(tmp_path: Path) -> None:
    import pandas as pd

    from keyfilters.experiments.initialization import epochs_needed

    rows = []
    for scheme, curve in (("default", [10.0, 90.0, 100.0]), ("keys", [96.0, 97.0, 98.0])):
        folder = tmp_path / scheme
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"result": {"curve": curve}}))
        row = {"scheme": scheme, "size": 3, "seed": 0, "status": "done", "folder": scheme}
        rows.append({**row, "top1": curve[-1]})
    assert epochs_needed(pd.DataFrame(rows), tmp_path)["epochs_needed"].tolist() == [3, 1]
    assert isinstance(build("initialization").runs[0], Run)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_questions_of_the_defaults_can_be_asked(name: str) -> None:
    """Also where a factor has no level, such as a number of images when all are taken."""
    function = getattr(importlib.import_module(f"keyfilters.experiments.{EXPERIMENTS[name]}"),
                       EXPERIMENTS[name])  # fmt: skip
    shared = replace(function.__defaults__[0], width=8, depth=2, seeds=3, device="cpu")
    experiment = function(shared)
    generator = np.random.default_rng(0)
    values = ("top1", "before", "beyond", "keys_beyond", "r2", "beyond_half", "accuracy_half",
              "epochs_needed")  # fmt: skip
    parts = zip(
        *(({**run.factors, "seed": run.seed}, {x: generator.normal() for x in values},
           {"status": "done"}) for run in experiment.runs), strict=True
    )  # fmt: skip
    frames = [pd.DataFrame(list(part), dtype=object).infer_objects() for part in parts]
    found = compare(pd.concat(frames, axis=1), experiment.factors, experiment.questions)
    assert len(found) and found["p"].notna().all()


def test_a_recipe_does_not_decide_what_an_experiment_does() -> None:
    """The images that are looked at on the way are test images, so they choose no epoch."""
    sections = {
        "schedule": {"select": "best", "steps": 300},
        "checkpoint": {"keep": [7], "steps": 5},
        "optimiser": {"base_lr": 0.1},
    }
    options = {"recipe": sections, "keep": [0, 2], "batch": 50}
    recipe = recipe_of(options, 0, 1000)
    assert recipe.schedule.select == "last" and recipe.schedule.steps == 300
    assert list(recipe.checkpoint.keep) == [0, 2] and recipe.checkpoint.steps == 5
    tuned = recipe_of({**options, "changes": {"schedule": {"epochs": 3}}}, 0, 1000)
    assert tuned.steps(1000) == 60
    steps = equal_steps({"digits": 1000, "digits?samples=300": 300}, Shared(epochs=2.5, batch=300))
    assert set(steps.values()) == {recipe_of({"epochs": 2.5, "batch": 300}, 0, 1000).steps(1000)}


def test_charts_over_a_factor_join_the_runs_of_a_seed(tmp_path: Path) -> None:
    rows = [Run({"n": n}, seed, MEASURE, {}) for n in (1, 2) for seed in (0, 1, 2)]
    panel = Panel("top-1", "top1", "n", over="n")
    question = Contrast("More?", {"n": 2}, {"n": 1})
    experiment = Experiment("made", "?", "", rows, [question], [panel])
    table = pd.DataFrame([
        {"n": run.factors["n"], "seed": run.seed, "top1": 10.0 * run.factors["n"] + run.seed,
         "status": "failed" if run is rows[3] else "done", "error": "", "attempts": 1,
         "folder": "", "seconds": 1.0} for run in rows
    ])  # fmt: skip
    [chart] = record_of(experiment, table, tmp_path)["charts"]
    [line] = chart["lines"].values()
    assert chart["at"] == [1, 2] and line == [[10, None], [11, 21], [12, 22]]


def test_a_file_named_by_the_network_decides_the_result(tmp_path: Path) -> None:
    network = "convnext_atto?depths=1,1,0,0&dims=8,8,8,8&patch_size=1"
    weights = build_network({"network": network, "size": 3}, load({"data": DATA}, 0), 1)
    keys = []
    for scale in (1, 2):
        state = {name: scale * x for name, x in weights.state_dict().items()}
        torch.save(state, tmp_path / "start.pth")
        shared = Shared(network=f"{network}&checkpoint_path={tmp_path / 'start.pth'}", size=3)
        keys.append(make_run({}, 0, shared.options(data=DATA)).key)
    assert keys[0] != keys[1]

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import keyfilters as kf
from keyfilters.experiments import initialization as module
from keyfilters.experiments.initialization import initialization, start, train_from
from keyfilters.experiments.initialization_findings import initialization_findings
from keyfilters.experiments.trial import build_network, load
from tests.experiments.test_trial import DATA, SMALL

SHARED = {**SMALL.to_dict(), "data": DATA, "bank": ""}


def test_conditions_differ_in_depthwise_filters_only() -> None:
    data = load(DATA, SMALL, 0)
    networks = {name: build_network(SMALL, data, 0) for name in (*module.CONDITIONS, "default")}
    first = networks["default"].state_dict()
    for name, network in networks.items():
        start(network, name, "", 0)
        changed = [key for key, x in network.state_dict().items() if not torch.equal(x, first[key])]
        depthwise = [f"{layer.name}.weight" for layer in kf.read(network).layers]
        assert [key.removesuffix(".weight") + ".weight" for key in changed] == (
            [] if name == "default" else depthwise
        )


def test_one_gamma_is_enough() -> None:
    data = load(DATA, SMALL, 0)
    for condition in ("center-surround?std=keep&gammas=0.5", "center-surround?gammas=0.3,0.6"):
        assert start(build_network(SMALL, data, 0), condition, "", 0) > 0


def test_std_keep_keeps_the_size_and_is_told() -> None:
    data = load(DATA, SMALL, 0)
    network = build_network(SMALL, data, 0)
    before = start(network, "default", "", 0)
    raw = start(build_network(SMALL, data, 0), "center-surround", "", 0)
    kept = start(network, "center-surround?std=keep", "", 0)
    assert kept == pytest.approx(before, rel=1e-5) and raw > 1.3 * before


def test_a_run_repeats_bit_for_bit(tmp_path: Path) -> None:
    options = {**SHARED, "initialization": "center-surround"}
    one, two = (train_from(options, 3, tmp_path / name) for name in "ab")
    del one["seconds_training"], two["seconds_training"]
    assert one == two


def planted_table(
    tmp_path: Path, gain: dict[int, float], *, seeds: int = 5, slow: int = 0
) -> pd.DataFrame:
    """A table as of a grid, in which center-surround gains so much at each kernel size.

    It is at the mark after two epochs, the others after three; in the first `slow` seeds never.
    """
    generator = np.random.default_rng(0)
    rows = []
    for size, more in gain.items():
        for seed in range(seeds):
            level = 70 + generator.normal(0, 2)  # shared by the conditions of a seed
            for name in ("default", "covariance", "center-surround", "center-surround?std=keep"):
                new = name == "center-surround"
                top1 = level + generator.normal(0, 0.1) + more * new
                folder = f"runs/{size}-{name}-{seed}"
                curve = [10.0, 88.0 if new else 20.0, 90.0]
                if new and seed < slow:
                    curve = [10.0, 10.0, 10.0]
                (tmp_path / folder).mkdir(parents=True)
                (tmp_path / folder / "result.json").write_text(
                    json.dumps({"result": {"curve": curve}})
                )
                row = {"condition": module.condition_name(size, name), "seed": seed}
                row |= {"options.size": size, "options.initialization": name, "top1": top1}
                rows.append(row | {"rms": 0.1 * size, "status": "done", "folder": folder})
    return pd.DataFrame(rows)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    table = planted_table(tmp_path, {3: 0.0, 5: 2.0, 7: 4.0})
    found = initialization_findings(table, tmp_path)
    told = dict(found.answers)
    assert told["Does center-surround beat other first filters at 3×3?"].startswith(
        "No difference found between 3×3 center-surround and 3×3 default"
    )
    large = told["Does center-surround beat other first filters at 7×7?"]
    assert re.search(r"7×7 center-surround beats 7×7 default by [34]\.\d points", large)
    assert re.search(r"7×7 center-surround beats 7×7 covariance by [34]\.\d points", large)
    assert told[
        "Does the gain of center-surround over the default grow with the kernel?"
    ].startswith("The gain grows by +")
    accuracy, scale = (matrix for matrix, _ in found.matrices)
    assert accuracy.loc["center-surround", "7×7"] - accuracy.loc["default", "7×7"] > 3.5
    assert scale.loc["default", "5×5"] == pytest.approx(0.5)
    # Each question corrects for its own comparisons; like is compared with like.
    assert set(found.comparisons["tests"]) == {2, 1}
    kept = found.comparisons[found.comparisons["condition"].str.contains("keep")]
    assert kept["reference"].str.contains("default").all()
    assert "No difference found" in told["Do other first filters differ from the default at 5×5?"]
    few = planted_table(tmp_path / "few", {3: 0.0, 7: 9.0}, seeds=2)
    answers = initialization_findings(few, tmp_path / "few").answers
    assert all("oo few seeds to say" in answer for _, answer in answers)


def test_runs_that_never_reach_the_mark_are_told(tmp_path: Path) -> None:
    question = "Does center-surround beat other first filters at 3×3?"
    table = planted_table(tmp_path / "all", {3: 0.0})
    told = dict(initialization_findings(table, tmp_path / "all").answers)[question]
    assert "Epochs to 85.5 %" in told and "by the same 1.0 epochs in each of 5 seeds" in told
    table = planted_table(tmp_path / "some", {3: 0.0}, slow=2)
    told = dict(initialization_findings(table, tmp_path / "some").answers)[question]
    assert "85.5 % was reached by 3×3 center-surround in 3 of 5 seeds only." in told
    assert "Epochs to" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["centre-surround"]}, "no initialisation is called 'centre-surround'"),
        ({"conditions": ["center-surround?gama=1"]}, "has no option 'gama'"),
        ({"conditions": ["idealized"]}, "needs a bank of trained filters"),
        ({"conditions": ["center-surround?share=abc"]}, "bad value|share"),
        ({"conditions": ["center-surround?gammas=abc"]}, "bad value|gammas"),
        ({"data": "digits?samples=abc"}, "samples is no whole number"),
        ({"sizes": []}, "at least one kernel size and one condition"),
        ({"data": "mnist"}, "no data set is called 'mnist'"),
    ],
)
def test_bad_input_is_refused_before_any_run(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        initialization(tmp_path / "out", setup=SMALL, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()

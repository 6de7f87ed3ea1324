from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import keyfilters as kf
from keyfilters.experiments import initialization as module
from keyfilters.experiments.initialization import findings, initialization, start, train_from
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


def planted_table(tmp_path: Path, gain: dict[int, float], seeds: int = 5) -> pd.DataFrame:
    """A table as of a grid, in which center-surround gains so much at each kernel size."""
    import json

    generator = np.random.default_rng(0)
    rows = []
    for size, more in gain.items():
        for seed in range(seeds):
            level = 70 + generator.normal(0, 2)  # shared by the conditions of a seed
            for name in ("default", "covariance", "center-surround"):
                top1 = level + generator.normal(0, 0.1) + more * (name == "center-surround")
                condition = module.condition_name(size, name)
                folder = f"runs/{size}-{name}-{seed}"
                curve = [top1 - 40, top1 - (1 if name == "center-surround" else 20), top1]
                (tmp_path / folder).mkdir(parents=True)
                (tmp_path / folder / "result.json").write_text(
                    json.dumps({"result": {"curve": curve}})
                )
                rows.append(
                    {
                        "condition": condition,
                        "seed": seed,
                        "options.size": size,
                        "options.initialization": name,
                        "top1": top1,
                        "status": "done",
                        "folder": folder,
                    }
                )
    return pd.DataFrame(rows)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    found = findings(planted_table(tmp_path, {3: 0.0, 5: 2.0, 7: 4.0}), tmp_path)
    told = dict(found.answers)
    assert told["Does center-surround beat default at 3×3?"].startswith("No difference found")
    sentence = told["Does center-surround beat default at 7×7?"]
    assert sentence.startswith("7×7 center-surround beats 7×7 default by 3.9 points")
    assert "Epochs to the mark: 7×7 center-surround" in sentence and "1.0 epochs" in sentence
    assert told["Does the gain of center-surround over default grow with the kernel?"].startswith(
        "The gain grows by +0.97 points a tap"
    )
    matrix, _ = found.matrices[0]
    assert matrix.loc["center-surround", "7×7"] - matrix.loc["default", "7×7"] > 3.5
    few = findings(planted_table(tmp_path / "few", {3: 0.0, 7: 9.0}, seeds=2), tmp_path / "few")
    assert all("oo few seeds to say" in answer for _, answer in few.answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["centre-surround"]}, "no initialisation is called 'centre-surround'"),
        ({"conditions": ["center-surround?gama=1"]}, "has no option 'gama'"),
        ({"conditions": ["idealized"]}, "needs a bank of trained filters"),
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

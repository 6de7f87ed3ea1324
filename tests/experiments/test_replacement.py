from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import keyfilters as kf
from keyfilters.experiments.on_keys import key_set
from keyfilters.experiments.replacement import condition_name, train_learned, tune_treated
from keyfilters.experiments.replacement import replacement as experiment
from keyfilters.experiments.replacement_findings import replacement_findings
from keyfilters.experiments.runs import Run
from keyfilters.experiments.trial import build_network, load, measure
from tests.experiments.planted import planted
from tests.experiments.test_trial import SMALL

SHARED = {**SMALL.to_dict(), "data": "digits?samples=200", "early_step": 1}
LENDER = Run(condition_name("learned"), 0).folder


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    train_learned(SHARED, 0, out / LENDER)
    return out


def treated(out: Path, treatment: str, start: str, assigned: str) -> tuple[dict[str, Any], Path]:
    options = {**SHARED, "treatment": treatment, "start": start, "assigned": assigned}
    options |= {"lender": str(LENDER), "steps": 2}
    folder = out / Run(condition_name(treatment, start, assigned), 0).folder
    folder.mkdir(parents=True, exist_ok=True)
    return tune_treated(options, 0, folder), folder / "model.safetensors"


def test_before_is_the_trained_network_on_keys(grid: Path) -> None:
    found, path = treated(grid, "keys", "trained", "trained")
    data = load(SHARED["data"], SMALL, 0)
    network = build_network(SMALL, data, 0)
    state = load_file(grid / LENDER / "model.safetensors")
    network.load_state_dict(state)
    kf.replace_filters_(network, key_set("lindeberg2026-B", 3))
    assert found["before"] == pytest.approx(measure(network.eval(), data)["top1"])
    tuned = load_file(path)
    name = next(name for name, x in state.items() if x.shape == (8, 1, 3, 3))
    torch.testing.assert_close(tuned[name], network.state_dict()[name], rtol=1e-5, atol=1e-6)
    moved = [key for key in state if not torch.equal(state[key], tuned[key])]
    assert any("head" in key for key in moved), "the rest was tuned"


def test_from_early_by_trained(grid: Path) -> None:
    learned, early = (
        kf.read(grid / LENDER / f"{name}.safetensors").stack(3)[0] for name in ("model", "step-1")
    )
    assert not np.array_equal(learned, early)
    keys = key_set("lindeberg2026-B", 3)
    for assigned, filters in (("trained", learned), ("early", early)):
        _, path = treated(grid, "keys", "early", assigned)
        index, a, b, _ = keys.assign(filters)
        found = kf.read(path).stack(3)[0]
        np.testing.assert_allclose(found, keys.reconstruct(index, a, b), rtol=1e-5, atol=1e-6)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    asked = {
        ("frozen", "trained", "trained"): 80.0,
        ("learned", "trained", "trained"): 80.0,
        ("keys", "trained", "trained"): 79.0,
        ("keys?learn=bias", "trained", "trained"): 80.0,
        ("keys?keys=random", "trained", "trained"): 70.0,
        ("learned", "early", "early"): 81.0,
        ("keys", "early", "trained"): 81.0,
        ("keys", "early", "early"): 78.0,
        ("keys?keys=random", "early", "trained"): 75.0,
        ("keys?drawn=1", "early", "early"): 78.0,
    }
    means = {"trained": 79.0} | {condition_name(*key): mean for key, mean in asked.items()}
    options = {"trained": {"treatment": np.nan}} | {
        condition_name(*key): dict(zip(("treatment", "start", "assigned"), key, strict=True))
        for key in asked
    }
    tuned = {name: 40.0 for name in means if name.startswith("tuned")}
    before = {name: (lambda seed, top=top: top + 0.1 * seed**2) for name, top in tuned.items()}
    before[condition_name("keys?keys=random", "trained", "trained")] = lambda seed: 12.0 + seed
    found = replacement_findings(planted(tmp_path, means, options, before=before), tmp_path)
    told = dict(found.answers)
    match = told["After tuning, do networks on keys match those that kept their filters?"]
    assert "b learned matches tuned: filters as they are, frozen within 0.5 points" in match
    assert "frozen beats tuned: 8 idealised keys, nearest, frozen by" in match
    helps = told["Does a learned b or σ help after the replacement?"]
    assert "tuned: 8 idealised keys, nearest, b learned beats" in helps
    early = told["From an early checkpoint, does it take the trained network to choose the keys?"]
    assert early.startswith("from early, by trained: 8 idealised keys, nearest, frozen beats from")
    first = told["Before any tuning, do the keys beat random ones?"]
    assert first.startswith("before tuning: 8 idealised keys, nearest, frozen beats before tuning:")
    assert "before tuning" not in found.short.partition("comparisons")[2]
    assert found.short.startswith("Means: trained ") and "before and" in found.short
    beat = told["From an early checkpoint, do the keys beat random ones and drawn ones?"]
    assert "No difference found between from early: 8 idealised keys, nearest" in beat
    matrix, _ = found.matrices[0]
    assert matrix.loc["tuned: 8 random keys, nearest, frozen", "before tuning"] == pytest.approx(14)


def test_every_run_is_asked_for_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(stages: Any, *_: Any) -> list[pd.DataFrame]:
        seen.extend(stages)
        return [pd.DataFrame()]

    monkeypatch.setattr("keyfilters.experiments.replacement.run_stages", note)
    setup = replace(SMALL, batch=20, epochs=5)  # 200 images: 50 steps
    experiment(
        *(tmp_path,), data=SHARED["data"], seeds=[4], setup=setup, early=0.2, tuning_epochs=7,
        tuning_lr=0.5, treatments=["keys"], begun=["keys", "keys?drawn=1"],
    )  # fmt: skip
    (learned, _), (treated, _) = seen
    assert [(x.condition, x.seed, x.options["early_step"]) for x in learned] == [("trained", 4, 10)]
    found = {x.condition: x.options for x in treated}
    tuned = found.pop("tuned: 8 idealised keys, nearest, frozen")
    assert (tuned["start"], tuned["epochs"], tuned["lr"], tuned["steps"]) == ("trained", 7, 0.5, 0)
    assert [(x["start"], x["assigned"]) for x in found.values()] == [
        ("early", "trained"),
        ("early", "early"),
        ("early", "early"),
    ]
    assert {(x["steps"], x["lr"]) for x in found.values()} == {(40, setup.lr)}
    assert {x.options["lender"] for x in treated} == {str(learned[0].folder)}


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="early is 1; a share between 0 and 1"):
        experiment(tmp_path, early=1, setup=SMALL)
    with pytest.raises(kf.KeyFiltersError, match="lr is -1; a number above 0"):
        experiment(tmp_path, tuning_lr=-1, setup=SMALL)
    with pytest.raises(kf.KeyFiltersError, match="40 training images, fewer than a batch of 64"):
        experiment(tmp_path, data="digits?samples=40", setup=SMALL)
    with pytest.raises(kf.KeyFiltersError, match="'kys' cannot be done"):
        experiment(tmp_path, begun=["kys"], setup=SMALL)
    assert not list(tmp_path.iterdir())

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.experiments.frozen_keys import CONDITIONS, condition_name, train_on_keys
from keyfilters.experiments.frozen_keys import frozen_keys as experiment
from keyfilters.experiments.frozen_keys_findings import frozen_keys_findings
from keyfilters.experiments.on_keys import key_set
from keyfilters.experiments.runs import Run
from tests.experiments.planted import planted
from tests.experiments.test_trial import SMALL

SHARED = {**SMALL.to_dict(), "data": "digits?samples=200", "samples": 200, "steps": 3}


def one_run(out: Path, condition: str, seed: int, lender: str = "") -> np.ndarray:
    options = {**SHARED, "condition": condition, "lender": lender}
    folder = out / Run(condition_name(condition, 200), seed).folder
    folder.mkdir(parents=True)
    found = train_on_keys(options, seed, folder)
    assert found["top1"] >= 0
    return kf.read(folder / "model.safetensors").stack(3)[0]


def test_keys_as_in_a_trained_network(tmp_path: Path) -> None:
    learned = one_run(tmp_path, "learned", 1)
    lender = str(Run(condition_name("learned", 200), 1).folder)
    keys = key_set("lindeberg2026-B", 3)
    index, a, b, _ = keys.assign(learned)
    expected = keys.reconstruct(index, a, b)
    frozen = one_run(tmp_path, "keys", 0, lender)
    np.testing.assert_allclose(frozen, expected, rtol=1e-5, atol=1e-6)
    moved = one_run(tmp_path, "keys?learn=bias", 0, lender)
    same = moved - moved.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(same, expected - b[:, None, None], rtol=1e-5, atol=1e-6)
    assert not np.allclose(moved.mean((1, 2)), b, atol=1e-6), "b has learned"


def test_every_run_is_asked_for_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(stages: Any, *_: Any) -> list[None]:
        seen.extend(stages)
        return [None]

    monkeypatch.setattr("keyfilters.experiments.frozen_keys.run_stages", note)
    experiment(tmp_path, samples=(100, 200), seeds=[4], setup=SMALL, steps=2)
    (lenders, _), (runs, _) = seen
    assert {(x.seed, x.options["data"], x.options["images_seed"]) for x in lenders} == {
        (5, "digits?samples=100", 4),
        (5, "digits?samples=200", 4),
    }
    assert all(x.options["condition"] == "learned" and not x.options["lender"] for x in lenders)
    assert len(runs) == 2 * len(CONDITIONS)
    nearest = [run for run in runs if run.options["lender"]]
    asked = {run.options["condition"] for run in nearest}
    assert asked == {"keys", "keys?learn=bias", "keys?keys=random"}
    folders = {str(run.folder): run.options["data"] for run in lenders}
    assert all(folders[run.options["lender"]] == run.options["data"] for run in nearest)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    tops = {
        "learned": 80.0,
        "keys?drawn=1": 79.9,
        "keys?drawn=1&learn=bias": 79.0,
        "keys?keys=random&drawn=1": 75.0,
        "keys?keys=random&drawn=1&learn=bias": 79.0,
        "frozen": 78.0,
    }
    gain = {100: 2.0, 400: 0.0}
    means, options = {}, {}
    for samples in (100, 400):
        for asked, top in tops.items():
            name = condition_name(asked, samples)
            means[name] = top + (gain[samples] if asked == "keys?drawn=1" else 0)
            options[name] = {"samples": samples, "condition": asked}
    found = frozen_keys_findings(planted(tmp_path, means, options), tmp_path)
    told = dict(found.answers)
    match = told["Do networks on keys match learned filters from 400 images?"]
    assert "8 idealised keys, drawn, frozen matches 400 images: learned filters within 0.5" in match
    assert "400 images: learned filters beats 400 images: 8 idealised keys, drawn, b" in match
    random = told["Do the keys beat random ones used in the same way from 400 images?"]
    assert "drawn, frozen beats 400 images: 8 random keys, drawn, frozen by" in random
    assert "No difference found between 400 images: 8 idealised keys, drawn, b learned" in random
    helps = told["Does a learned b help, or σ from 100 images?"]
    assert "100 images: 8 random keys, drawn, b learned beats" in helps
    (slope,) = (told[q] for q in told if q.startswith("Does what 8 idealised keys, drawn, frozen"))
    assert slope.startswith(("The gain falls by −1.0", "The gain falls by −0.9"))
    assert list(found.curves) == ["100 images", "400 images"]
    matrix, _ = found.matrices[0]
    row = matrix.loc["8 random keys, drawn, frozen"]
    assert row["400 images"] == pytest.approx(75, abs=3)


def test_data_with_two_numbers_of_samples(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="says how many images"):
        experiment(tmp_path, data="digits?samples=5", samples=(100,), setup=SMALL)

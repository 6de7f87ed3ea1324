from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import keyfilters as kf
from keyfilters.experiments.emergence import (
    QUALITIES,
    changes,
    cluster_steps,
    emergence,
    kept_steps,
    shares,
    spoiled,
    train_and_look,
)
from keyfilters.experiments.emergence_findings import emergence_findings, rank_correlations
from keyfilters.experiments.runs import Run
from keyfilters.experiments.trial import load
from tests.experiments.planted import planted
from tests.experiments.test_runner import at_once
from tests.experiments.test_trial import DATA, SMALL


def test_shares_of_planted_filters() -> None:
    keys = kf.KeySet.published("lindeberg2026-B").filters
    generator = np.random.default_rng(0)
    index = generator.integers(8, size=120)
    scale = generator.normal(size=(120, 1, 1))
    planted_filters = (scale * keys[index] + generator.normal(size=(120, 1, 1))).astype(np.float32)
    found = shares(planted_filters, seed=0)
    assert found["keys"] == pytest.approx(100, abs=1e-3) and found["explained"] > 95
    assert found["shuffled"] < 10 and found["r2"] > 0.9 and found["keys_beyond"] > 60
    assert found["covariance"] > found["shuffled"] + 50  # smooth noise is explained too
    noise = generator.normal(size=(120, 7, 7)).astype(np.float32)
    found = shares(noise, seed=0)
    assert abs(found["beyond"]) < 3 and abs(found["keys_beyond"]) < 3
    assert found["random_keys"] == pytest.approx(100 * _largest_of(8, 48), abs=1)


def _largest_of(count: int, dimensions: int) -> float:
    """Mean of the largest of so many squared cosines of random unit vectors, by drawing."""
    generator = np.random.default_rng(1)
    unit = generator.normal(size=(4000, count + 1, dimensions))
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    return float((np.einsum("ncd,nd->nc", unit[:, 1:], unit[:, 0]) ** 2).max(1).mean())


def test_labels_are_spoiled_as_asked() -> None:
    data = load("digits", SMALL, 0)
    same = spoiled(data, 1, 0, 0)
    assert sorted(same.labels.tolist()) == sorted(data.labels.tolist())
    half = spoiled(data, 0.5, 0.4, 0)
    assert len(half.images) == round(len(data.images) / 2)
    true = {x.numpy().tobytes(): int(y) for x, y in zip(data.images, data.labels, strict=True)}
    wrong = [
        true[x.numpy().tobytes()] != int(y) for x, y in zip(half.images, half.labels, strict=True)
    ]
    assert np.mean(wrong) == pytest.approx(0.4 * 0.9, abs=0.05)


def test_a_run_is_looked_at_on_the_way(tmp_path: Path) -> None:
    folder = tmp_path / Run("usual", 0).folder
    folder.mkdir(parents=True)
    options = {**SMALL.to_dict(), "width": 32, "depth": 2, "data": DATA, "quality": "noise=0.5"}
    found = train_and_look(options, 0, folder)
    assert found["steps"] == [0, 1, 2, 4, 6] == kept_steps(6)
    for name in ("beyond", "accuracy", "keys"):
        assert len(found[f"{name}_on_the_way"]) == 5
    assert found["beyond"] == found["beyond_on_the_way"][-1]
    last = kf.read(folder / "step-6.safetensors").stack(3)[0]
    np.testing.assert_array_equal(last, kf.read(folder / "model.safetensors").stack(3)[0])
    assert found["keys"] == pytest.approx(shares(last, 0)["keys"])
    atlas = tmp_path / Run("atlas of usual", 0).folder
    atlas.mkdir(parents=True)
    given = {"size": 3, "folders": [str(Run("usual", 0).folder)]}
    clustered = cluster_steps(given, 0, atlas)
    table = pd.read_parquet(atlas / "filters.parquet")
    assert clustered["steps"] == [0, 1, 2, 4, 6] and len(table) == 5 * 64
    at_last = table[table["model"] == "step-6"]
    assert clustered["classified"][-1] == pytest.approx(100 * at_last["classified"].mean())
    kinds = [value[-1] for name, value in clustered.items() if name.startswith("kind ")]
    assert sum(kinds) == pytest.approx(clustered["classified"][-1])


def test_qualities_change_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the training: its setup, data, first filters and number of steps."""
    seen: dict[str, Any] = {}

    def note(setup: Any, network: Any, data: Any, *_: Any, steps: int, keep: Any) -> Any:
        seen.update(setup=setup, network=network, data=data, steps=steps)
        raise InterruptedError

    monkeypatch.setattr("keyfilters.experiments.emergence.train_and_measure", note)
    setup = replace(SMALL, batch=20)  # 200 images: 10 steps an epoch, 20 in all
    usual = {}
    for quality in ("usual", "steps=0.5", "samples=0.5", "noise=1", "lr=3", "width=4", "std=0.001"):
        options = {**setup.to_dict(), "data": DATA, "quality": quality}
        with pytest.raises(InterruptedError):
            train_and_look(options, 0, tmp_path)
        filters = kf.read(seen["network"]).stack(3)[0]
        images, labels = seen["data"].images, seen["data"].labels
        usual = usual or {"labels": labels, "images": len(images)}
        assert seen["steps"] == (10 if quality == "steps=0.5" else 20)
        assert len(images) == usual["images"] * (0.5 if quality == "samples=0.5" else 1)
        if quality not in ("samples=0.5", "noise=1"):
            assert (labels == usual["labels"]).all()
        if quality == "noise=1":
            assert 0.4 < (labels != usual["labels"]).double().mean() < 0.9
        assert seen["setup"].lr == (3 if quality == "lr=3" else SMALL.lr)
        assert len(filters) == (4 if quality == "width=4" else 8)
        assert (filters.std() < 0.002) == (quality == "std=0.001")


def test_a_bad_training_ends_nothing_and_seeds_may_be_added(tmp_path: Path) -> None:
    setup = replace(SMALL, width=16, depth=2, epochs=1, watched=20)
    given: dict[str, Any] = {"data": DATA, "setup": setup, "workers": 1, "executor": at_once}
    for seeds in ([0], [0, 1]):
        table = emergence(tmp_path, qualities=["usual", "lr=1e12"], seeds=seeds, **given)
        assert (table.loc[table["condition"] == "usual", "status"] == "done").all()
        found = emergence_findings(table, tmp_path)
        (seen,) = (answer for question, answer in found.answers if "atlas see (usual)" in question)
        assert "could not be made" in seen or "classifies" in seen
    assert "failed" in table["status"].tolist()


def planted_runs(out: Path, beyond: dict[str, float]) -> pd.DataFrame:
    tops = {"usual": 80.0, "noise=0.4": 70.0, "lr=0.3": 60.0, "width=8": 80.0}
    tops |= {name: 75.0 for name in beyond if name not in tops}
    steps = [0, 1, 2, 4]
    ways = {
        name: (lambda seed, end=end: [0.0, 0.1 * end, end, end]) for name, end in beyond.items()
    }
    way_up = {name: [10.0, top, top, top] for name, top in tops.items()}
    return planted(
        out,
        tops,
        {name: {"quality": name} for name in tops},
        beyond={
            name: (lambda seed, end=end: end * (1 + 0.01 * seed)) for name, end in beyond.items()
        },
        beyond_on_the_way=ways,
        keys_beyond_on_the_way=ways,
        accuracy_on_the_way=way_up,
        steps=dict.fromkeys(tops, steps),
        **{
            name: {condition: (lambda seed: float(seed)) for condition in tops}
            for name in ("keys_beyond", "r2", "random_keys", "train_loss", "explained", "keys")
        },
        shuffled=dict.fromkeys(tops, 0.0),
    )


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    beyond = {"usual": 40.0, "noise=0.4": 20.0, "lr=0.3": 60.0, "width=8": 40.0}
    found = emergence_findings(planted_runs(tmp_path, beyond), tmp_path)
    told = dict(found.answers)
    when = told["When do the patterns appear in training (usual)?"]
    assert "half of what the accuracy gains is there at step 1" in when
    assert "half of what the share of filters explained gains is there at step 2" in when
    flags = told["Does the share explained flag broken training?"]
    assert flags.startswith(
        "Of 2 kinds of training that are worse than the usual one, 1 (noise=0.4) has a smaller "
        "share, 1 (lr=0.3) a larger one"
    )
    assert found.axes["filters explained"].at == [0, 1, 2, 4]


def test_rank_correlations_of_planted_runs(tmp_path: Path) -> None:
    with_it = {"usual": 40.0, "noise=0.4": 20.0, "lr=0.3": 10.0, "width=8": 41.0}
    with_it |= {"steps=0.1": 30.0, "noise=1": 29.0}
    table = planted_runs(tmp_path, with_it)
    found = rank_correlations(table).set_index("measure")
    row = found.iloc[0]
    expected = spearmanr(table["beyond"], table["top1"]).statistic
    assert row["rho"] == pytest.approx(expected) and row["rho"] > 0.6
    assert row["runs"] == 30 and row["conditions"] == 6
    assert row["low"] <= row["rho"] <= row["high"]
    shuffled = next(i for i in found.index if "shuffled taps explained" in i)
    assert np.isnan(found.loc[shuffled, "rho"]), "a constant has no ranks"
    few = rank_correlations(table.iloc[:12])
    kinds = rank_correlations(table[table["condition"] != "noise=1"])
    assert few["rho"].isna().all() and kinds["rho"].isna().all() and kinds["runs"].eq(25).all()


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ("nose=1", "'nose' cannot be changed"),
        ("noise=2", "noise is 2; a number above 0 and at most 1 expected"),
        ("lr=fast", "lr is 'fast'; a number above 0 expected"),
    ],
)
def test_qualities_that_cannot_be(quality: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        emergence(tmp_path, qualities=["usual", quality], setup=SMALL)
    assert not list(tmp_path.iterdir())


def test_the_qualities_that_come_along() -> None:
    assert len({json.dumps(changes(quality)) for quality in QUALITIES}) == len(QUALITIES) == 9

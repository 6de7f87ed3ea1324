from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import keyfilters as kf
from keyfilters.experiments.lending import freeze_weights_
from keyfilters.experiments.runs import Run
from keyfilters.experiments.transfer import (
    condition_name,
    pointwise_weights,
    train_frozen,
    train_learned,
    trained_here,
    transfer,
)
from keyfilters.experiments.transfer_findings import transfer_findings
from keyfilters.experiments.trial import Setup, build_network, load
from tests.experiments.test_trial import DATA, SMALL

SHARED = {**SMALL.to_dict(), "data": DATA, "steps": 0}


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a grid in which seed 1 has learned."""
    out = tmp_path_factory.mktemp("grid")
    folder = out / Run(condition_name(DATA, "learned"), 1).folder
    train_learned(SHARED, 1, folder)
    return out


def frozen_run(out: Path, kind: str, source: str = DATA) -> tuple[dict[str, object], kf.FilterBank]:
    model = str(Run(condition_name(DATA, "learned"), 1).folder)
    options = {**SHARED, "kind": kind, "source": source, "lender": model}
    folder = out / "runs" / kind.replace(" ", "-") / "seed-0"
    folder.mkdir(parents=True)
    return train_frozen(options, 0, folder), kf.read(folder / "model.safetensors")


def test_what_is_frozen_is_what_was_learned_elsewhere(lender: Path) -> None:
    (model,) = (lender / "runs").rglob("model.safetensors")
    learned = kf.read(model).stack(3)[0]
    found, bank = frozen_run(lender, "as they are")
    np.testing.assert_array_equal(bank.stack(3)[0], learned)
    assert found["trainable"] == found["parameters"] - learned.size
    for kind, sorts in (("tap-shuffled", (2,)), ("channel-shuffled", (0,))):
        shuffled = frozen_run(lender, kind)[1].stack(3)[0].reshape(1, 8, 9)
        flat = learned.reshape(1, 8, 9)
        assert not np.array_equal(shuffled, flat)
        if sorts == (2,):  # the same taps, filter by filter
            np.testing.assert_allclose(np.sort(shuffled, 2), np.sort(flat, 2), rtol=1e-6)
        else:  # the same filters
            assert {x.tobytes() for x in shuffled[0]} == {x.tobytes() for x in flat[0]}


def test_pointwise_filters_are_copied_and_kept(lender: Path) -> None:
    frozen_run(lender, "pointwise")
    (model,) = (lender / "runs" / "pointwise").rglob("model.safetensors")
    (source,) = (x for x in (lender / "runs").rglob("model.safetensors") if "learned" in str(x))
    from safetensors.torch import load_file

    names = pointwise_weights(build_network(SMALL, load(DATA, SMALL, 0), 0))
    one, other = load_file(model), load_file(source)
    assert names and all(torch.equal(one[name], other[name]) for name in names)
    network = build_network(SMALL, load(DATA, SMALL, 0), 0)
    first = {name: weight.clone() for name, weight in pointwise_weights(network).items()}
    weights = pointwise_weights(network)
    check = freeze_weights_(weights)
    check()
    assert all(torch.equal(weights[name], first[name]) for name in names)
    assert not any(weight.requires_grad for weight in weights.values())
    next(iter(weights.values())).data[0] += 1e-6
    with pytest.raises(kf.KeyFiltersError, match="were frozen, but moved"):
        check()


def planted_table(means: dict[tuple[str, str], float], tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        level = generator.normal(0, 2)
        for (kind, source), mean in means.items():
            folder = f"runs/{len(rows)}"
            top1 = mean + level + generator.normal(0, 0.1)
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "result.json").write_text(
                json.dumps({"result": {"curve": [top1]}})
            )
            row = {"condition": condition_name("digits", kind, source), "seed": seed}
            row |= {"options.kind": np.nan if kind == "learned" else kind}
            row |= {"options.source": source, "options.data": "digits", "top1": top1}
            rows.append(row | {"status": "done", "folder": folder})
    return pd.DataFrame(rows)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    small, large = "photos?samples=100", "photos"
    means = {
        ("learned", ""): 90.0,
        ("own first", ""): 80.0,
        ("as they are", small): 85.0,
        ("as they are", large): 90.0,
        ("tap-shuffled", large): 90.0,
        ("channel-shuffled", large): 90.0,
        ("random", large): 80.0,
        ("random", small): 80.0,
        ("impulse", large): 70.0,
    }
    found = transfer_findings(planted_table(means, tmp_path), tmp_path)
    assert "filters of photos beats filters of photos, random by" in found.short
    told = dict(found.answers)
    match = told["On digits, do frozen filters of photos match learned ones?"]
    assert match.startswith("filters of photos matches learned within 1 points")
    beaten = told[f"On digits, do frozen filters of {small} match learned ones?"]
    assert beaten.startswith("learned beats")
    (beats,) = (told[q] for q in told if "do frozen filters of photos beat" in q)
    assert re.search(r"beats own first filters by (9\.9|10\.)", beats)
    assert re.search(r"beats filters of photos, impulse by (19\.9|20\.)", beats)
    assert re.search("No difference found .* and filters of photos, tap-shuffled", beats)
    channels = told["On digits, does it matter which channel has which filter of photos?"]
    assert channels.startswith("No difference found")
    learning = told["On digits, does learning the filters beat freezing the random first ones?"]
    assert learning.startswith("learned beats own first filters by")
    larger = told[f"On digits, does the larger source photos serve better than {small}?"]
    assert "beats filters of photos?samples=100 by" in larger
    assert not any("pointwise" in question for question in told)  # these have not run
    assert set(found.conditions["condition"]) == set(found.table["condition"])
    matrix, _ = found.matrices[0]
    assert matrix.loc["photos, impulse", "digits"] == pytest.approx(70, abs=3)


def test_filters_that_are_no_better_than_random_ones_are_told(tmp_path: Path) -> None:
    kinds = [("learned", ""), ("as they are", "photos"), ("random", "photos")]
    found = transfer_findings(planted_table(dict.fromkeys(kinds, 90.0), tmp_path), tmp_path)
    assert found.short.startswith("None of 2 comparisons shows a difference beyond chance.")
    assert "Nowhere were trained filters found to beat random ones" in found.short


@pytest.mark.slow
def test_lenders_have_other_first_weights_and_a_folder_grows(tmp_path: Path) -> None:
    sources = [DATA, "digits?samples=90&classes=0,1,2"]
    options = {"targets": [DATA], "sources": sources, "setup": SMALL, "pointwise": False}
    transfer(tmp_path, seeds=range(1), **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    table = transfer(tmp_path, seeds=range(2), **options)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (table["status"] == "done").all()
    for path in (tmp_path / "runs").glob("*/seed-*/run.json"):
        asked = json.loads(path.read_text())
        lender = asked["options"].get("lender")
        if lender:
            lent = json.loads((tmp_path / lender / "run.json").read_text())
            assert lent["seed"] == asked["seed"] + 1
            assert lent["options"]["steps"] == 6  # of the larger one: 2 epochs of 3 steps
    learned = table[table["condition"] == condition_name(DATA, "learned")]
    assert sorted(learned["seed"]) == [0, 1]


def test_networks_without_pointwise_convolutions_are_refused(tmp_path: Path) -> None:
    setup = Setup(network="convnext_tiny", resolution=32)
    with pytest.raises(kf.KeyFiltersError, match="has no 1×1 convolutions; type --no-pointwise"):
        transfer(tmp_path / "out", targets=[DATA], setup=setup)


def test_sources_are_data_or_filters() -> None:
    assert trained_here("digits") and trained_here("imagefolder:x?samples=3")
    assert not trained_here("package:rapidocr") and not trained_here("net.onnx")


def test_bad_input_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="no data set is called 'digit'"):
        transfer(tmp_path / "out", targets=["digit"], setup=SMALL)
    with pytest.raises(kf.KeyFiltersError):
        transfer(tmp_path / "out", targets=[DATA], sources=["package:nothing"], setup=SMALL)
    assert not (tmp_path / "out").exists()

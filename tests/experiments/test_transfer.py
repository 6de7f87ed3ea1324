from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import keyfilters as kf
from keyfilters.experiments.runs import Run
from keyfilters.experiments.transfer import (
    condition_name,
    findings,
    freeze_pointwise_,
    pointwise_weights,
    train_frozen,
    train_learned,
    trained_here,
    transfer,
)
from keyfilters.experiments.trial import build_network, load
from tests.experiments.test_trial import DATA, SMALL

SHARED = {**SMALL.to_dict(), "data": DATA}


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a grid in which seed 1 has learned."""
    out = tmp_path_factory.mktemp("grid")
    folder = out / Run(condition_name(DATA, "learned"), 1).folder
    train_learned(SHARED, 1, folder)
    return out


def frozen_run(out: Path, kind: str, source: str = DATA) -> tuple[dict[str, object], kf.FilterBank]:
    model = str(Run(condition_name(DATA, "learned"), 1).folder / "model.safetensors")
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
    kept = freeze_pointwise_(network, None)
    assert all(torch.equal(kept[name], first[name]) for name in names)
    assert not any(weight.requires_grad for weight in pointwise_weights(network).values())


def planted_table(means: dict[tuple[str, str], float], tmp_path: Path) -> pd.DataFrame:
    import json

    generator = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        level = generator.normal(0, 2)
        for (kind, source), mean in means.items():
            name = condition_name("digits", kind, source if kind != "learned" else "")
            folder = f"runs/{len(rows)}"
            top1 = mean + level + generator.normal(0, 0.1)
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "result.json").write_text(
                json.dumps({"result": {"curve": [top1]}})
            )
            rows.append(
                {
                    "condition": name,
                    "seed": seed,
                    "options.kind": np.nan if kind == "learned" else kind,
                    "options.source": source,
                    "options.data": "digits",
                    "top1": top1,
                    "status": "done",
                    "folder": folder,
                }
            )
    return pd.DataFrame(rows)


def test_findings_say_what_was_planted(tmp_path: Path) -> None:
    small, large = "photos?samples=100", "photos"
    table = planted_table(
        {
            ("learned", ""): 90.0,
            ("as they are", small): 85.0,
            ("as they are", large): 90.0,
            ("tap-shuffled", large): 90.0,
            ("random", small): 80.0,
            ("impulse", small): 70.0,
        },
        tmp_path,
    )
    found = findings(table, tmp_path)
    assert "beats digits: random filters by 10.0 points" in found.short
    told = dict(found.answers)
    assert told["On digits, do frozen filters of photos match learned ones?"].startswith("No diff")
    beaten = told[f"On digits, do frozen filters of {small} match learned ones?"]
    assert beaten.startswith("digits: learned beats")
    assert (
        "beats digits: random filters by 10."
        in (told["On digits, do frozen filters of photos beat random ones?"])
    )
    assert told["On digits, do frozen filters of photos beat the same, tap-shuffled?"].startswith(
        "No difference"
    )
    larger = told["On digits, does the larger source photos serve better?"]
    assert "beats digits: filters of photos?samples=100 by 5." in larger
    assert not any("pointwise" in question for question in told)  # these have not run


def test_filters_that_are_no_better_than_random_ones_are_told(tmp_path: Path) -> None:
    kinds = [("learned", ""), ("as they are", "photos"), ("random", "photos")]
    found = findings(planted_table(dict.fromkeys(kinds, 90.0), tmp_path), tmp_path)
    assert found.short.startswith("None of 2 comparisons shows a difference beyond chance.")
    assert "Nowhere were trained filters found to beat random ones" in found.short


def test_sources_are_data_or_filters() -> None:
    assert trained_here("digits") and trained_here("imagefolder:x?samples=3")
    assert not trained_here("package:rapidocr") and not trained_here("net.onnx")


def test_bad_input_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="no data set is called 'digit'"):
        transfer(tmp_path / "out", targets=["digit"], setup=SMALL)
    with pytest.raises(kf.KeyFiltersError):
        transfer(tmp_path / "out", targets=[DATA], sources=["package:nothing"], setup=SMALL)
    assert not (tmp_path / "out").exists()

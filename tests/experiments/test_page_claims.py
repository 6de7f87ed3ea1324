"""The claims of a page as a whole hold at the stated rate, whatever the experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from keyfilters.experiments import EXPERIMENTS
from keyfilters.experiments.comparison import compare
from tests.experiments.experiments import build

PAGES = 30  # of each experiment
VALUES = ("top1", "before", "beyond", "keys_beyond", "r2", "beyond_half", "accuracy_half",
          "epochs_needed")  # fmt: skip
FULL: dict[str, Any] = {  # as many questions as the experiments have on their own
    "initialization": {"condition": ("default", "covariance", "center-surround", "impulse"),
                       "sizes": (3, 5, 7)},
    "frozen-keys": {"condition": ("learned", "frozen", "keys", "keys?drawn=1", "keys?learn=bias",
                                  "keys?keys=random", "keys?keys=random&drawn=1")},
    "emergence": {"quality": ("usual", "noise=0.5", "steps=0.5", "noise=1", "lr=0.1", "width=8",
                              "std=0.02")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statsmodels collects garbage at every correction, which takes most of the time here."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def test_at_most_one_page_in_twenty_claims_a_difference_that_is_not_there() -> None:
    generator = np.random.default_rng(0)
    claims = 0
    for name in EXPERIMENTS:
        experiment = build(name, **FULL.get(name, {}))
        rows = [run.factors for run in experiment.runs]
        table = pd.DataFrame([{**row, "seed": seed} for seed in range(5) for row in rows])
        for _ in range(PAGES):
            for value in VALUES:
                seeds = np.repeat(generator.normal(0, 2, 5), len(rows))  # of all conditions
                table[value] = seeds + generator.normal(0, 0.3, len(table))
            found = compare(table, experiment.factors, experiment.questions)
            claims += bool(found["verdict"].isin(["higher", "lower"]).any())
        assert found["tests"].iloc[0] >= 5
    # Holm bounds the rate by 0.05; two standard errors of this many pages are added.
    pages = PAGES * len(EXPERIMENTS)
    assert claims / pages <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / pages)


def test_a_planted_difference_is_found_on_a_page_of_many_questions() -> None:
    experiment = build("frozen-keys", **FULL["frozen-keys"])
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        for run in experiment.runs:
            gain = 3.0 * (run.factors["keys"] != "random:8")
            rows.append({**run.factors, "seed": seed, "top1": gain + generator.normal(0, 0.1)})
    found = compare(pd.DataFrame(rows), experiment.factors, experiment.questions)
    beats = found[found["question"].str.contains("random ones")]
    assert len(beats) >= 2 and (beats["verdict"] == "higher").all()

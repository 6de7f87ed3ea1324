"""Replacement without training: runs are paired, and all differences are corrected together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from keyfilters.training import Recipe


@pytest.fixture
def script(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("natural_replacement")


def test_differences_are_paired_and_corrected(script: ModuleType) -> None:
    generator = np.random.default_rng(0)
    level = {run: 50 + 10 * run for run in range(5)}  # far apart: only pairs can tell
    rows = pd.DataFrame(
        {"run": run, "keys": keys, "number": n, "top1": level[run] + generator.normal()}
        for keys, numbers in script.COUNTS.items()
        for n in numbers
        for run in generator.permutation(5)
    )
    better = rows["keys"] == script.LEARNED
    rows.loc[better, "top1"] += 8
    found = pd.DataFrame(script.differences(rows))
    held = rows.set_index(["keys", "number", "run"])["top1"].sort_index()
    row = found.query("minus == @script.RANDOM and number == 8 and keys == @script.LEARNED").iloc[0]
    one, other = (held[name, 8] for name in (script.LEARNED, script.RANDOM))
    test = ttest_rel(one, other)
    assert row["mean"] == pytest.approx((one - other).mean())
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert test.pvalue <= row["p_holm"] <= len(found) * test.pvalue + 1e-12
    assert (found["keys"] == script.LEARNED).sum() == 14 and len(found) == 17
    assert (found.query("keys == @script.LEARNED")["p_holm"] < 0.05).all()
    summed = pd.DataFrame(script.conditions(rows)).set_index(["keys", "number"])
    assert summed.loc[(script.LEARNED, 8), "mean"] == pytest.approx(one.mean())


def test_runs_must_be_alike_but_for_their_seed(script: ModuleType) -> None:
    first = Recipe.from_dict({})
    script.require_alike([first, replace(first, seed=1)])
    longer = Recipe.from_dict({"seed": 1, "schedule": {"epochs": 99}})
    for recipes in ([first], [first, first], [first, longer]):
        with pytest.raises(SystemExit):
            script.require_alike(recipes)

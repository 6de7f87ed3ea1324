from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.discovery.candidates import candidates, different
from keyfilters.discovery.discover import discover_keys
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit


def planted(size: int, seed: int, count: int = 8, n: int = 1600) -> tuple[KeySet, kf.FilterBank]:
    """A bank of a · x + b from known keys, of either sign, with noise at 20 dB."""
    generator = np.random.default_rng(seed)
    keys = KeySet.random(count, size, 100 + seed)
    a = generator.choice([-1, 1], n) * generator.uniform(0.5, 2, n)
    filters = a[:, None, None] * keys.filters[generator.integers(count, size=n)]
    noise = 0.1 * np.abs(a)[:, None, None] / size * generator.normal(size=filters.shape)
    filters = filters + noise + generator.normal(size=(n, 1, 1))
    layers = [
        Layer("one", "a", filters[: n // 2].astype(np.float32), None, None, 0.0),
        Layer("one", "b", filters[n // 2 :].astype(np.float32), None, None, 1.0),
    ]
    return keys, kf.FilterBank(layers)


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_keys_are_found_and_counted(size: int, seed: int) -> None:
    keys, bank = planted(size, seed)
    count = 8 if size > 3 else 5  # eight random keys nearly fill the eight dimensions of 3×3
    if size == 3:
        keys, bank = planted(size, seed, count)
    found = discover_keys(bank, kinds=["lines"], seed=seed)
    assert found.number.number == len(found.keys) == count
    cosine = np.abs(np.einsum("iyx,jyx->ij", keys.filters, found.keys.filters))
    assert (cosine.max(1) > 0.99).all() and len(set(cosine.argmax(1))) == count
    assert found.value > 0.98
    at = found.curve.query("round == 2").set_index("keys")
    assert at["value"][count] > 0.95 and at["value"][count - 1] < at["value"][count] - 0.02
    if size > 3:
        assert at["covariance"][count] < at["value"][count] - 0.1
        assert at["white"][count] < at["value"][count] - 0.3


def test_keys_of_a_real_network_are_receptive_fields(lite0: kf.FilterBank) -> None:
    first = discover_keys(lite0, size=5, keys=8, kinds=["code", "idealized"], seed=0)
    again = discover_keys(lite0, size=5, keys=8, kinds=["code", "idealized"], seed=0)
    assert np.array_equal(first.keys.filters, again.keys.filters)
    curve = first.curve
    for _, part in curve.groupby("round"):
        assert (part["value"].diff().dropna() <= 1e-9).all()
    assert (curve["value"] > curve["white"] + 0.05).all()
    assert first.strictest == "covariance" and first.value > first.nulls["covariance"] + 0.02
    assert first.value >= curve.query("keys == 8")["value"].max() - 1e-9
    assert first.models["share"].sum() == pytest.approx(1)
    assert first.models["r2"].median() > 0.8  # the keys are receptive fields


def test_given_number_of_keys_and_more_rounds() -> None:
    _, bank = planted(5, 0)
    one = discover_keys(bank, keys=6, kinds=["random"], rounds=1)
    two = discover_keys(bank, keys=6, kinds=["random"], rounds=2)
    assert len(one.keys) == len(two.keys) == 6
    assert two.value > one.value + 0.1  # resampling leaves the random candidates behind


def test_many_keys_leave_room_for_few_new_candidates() -> None:
    _, bank = planted(5, 0, n=400)
    found = kf.discover_keys(bank, kinds=["lines"], count=20, keys=16)
    assert len(found.keys) == 16 and max(map(len, found.pools)) <= 20
    for null, value in found.nulls.items():
        at = found.curve[found.curve["round"] == 2].set_index("keys")[null][16]
        assert at - 1e-6 <= value < found.value  # rounds and exchange included
        assert found.null_r2[null].mean() == pytest.approx(value, rel=1e-5)
    assert found.served["r2"].mean() == pytest.approx(found.value, rel=1e-5)


def test_candidates_differ() -> None:
    _, bank = planted(5, 1)
    unit = centred_unit(bank.stack(5)[0])
    for kind in ("code", "lines", "kmeans", "idealized", "random"):
        found = candidates(unit, 5, 20, kinds=[kind])
        flat = found.filters.reshape(len(found), -1)
        cosine = np.abs(flat @ flat.T) - np.eye(len(found))
        assert cosine.max() < 0.999 and len(found) <= 20
    mixed = candidates(unit, 5, 20, kinds=["lines", "random"])
    assert sum(name.startswith("random") for name in mixed.names) == 10
    assert len(different(np.concatenate([flat, -2 * flat + 3]))) == len(flat)


def test_bad_input_is_refused_before_any_work() -> None:
    _, bank = planted(5, 0, n=40)
    other = kf.FilterBank([*bank.layers, *planted(3, 0)[1].layers])
    steps: list[str] = []
    for given, options, message in (
        (other, {}, "the bank has 3×3, 5×5; type size=K"),
        (other, {"size": 7}, "no 7×7 filters in this bank"),
        (bank, {}, "40 filters are too few to choose from 50 candidates"),
        (bank, {"keys": 60}, "cannot keep 60 keys of 50 candidates"),
        (bank, {"rounds": 0}, "rounds must be at least 1"),
        (bank, {"count": 8, "kinds": ["codes"]}, "no candidates are called 'codes'; the nearest"),
        (bank, {"criterion": "agreement"}, "needs model= and images="),
        (bank, {"criterion": "beauty"}, "criterion is 'beauty'; there are: variance, outputs"),
        (bank, {"count": 1, "kinds": ["code", "lines"]}, "cannot make 1 candidates of 2 kinds"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=message):
            discover_keys(given, progress=steps.append, **options)
    assert steps == []
    same = np.repeat(kf.KeySet.random(4, 5).filters.astype(np.float32), 20, 0)
    few = kf.FilterBank([kf.Layer("net", "c", same, None, None, 0.0)])
    with pytest.raises(kf.KeyFiltersError, match="only 4 candidates differ"):
        discover_keys(few, kinds=["lines"], count=40, keys=20, progress=steps.append)
    assert steps == ["candidates"]


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (4, 4), (2, 5)])
def test_keys_of_any_window_are_discovered(size: tuple[int, int]) -> None:
    planted = kf.KeySet.random(3, size, seed=1)
    generator = np.random.default_rng(0)
    index = generator.integers(3, size=150)
    filters = planted.filters[index] * generator.choice([-2.0, 1.0], 150)[:, None, None]
    filters = (filters + 0.02 * generator.normal(size=filters.shape)).astype(np.float32)
    other = Layer("net", "other", generator.normal(size=(8, 3, 7)), None, None, 1.0)
    bank = kf.FilterBank([Layer("net", "conv", filters, None, None, 0.0), other])
    found = kf.discover_keys(
        bank, size=size, keys=3, count=12, kinds=["lines", "idealized"], nulls=("white",)
    )
    cosine = np.abs(np.einsum("iyx,jyx->ij", planted.filters, found.keys.filters))
    assert found.keys.window == size and (cosine.max(1) > 0.99).all()
    assert found.options["size"] == (4 if size == (4, 4) else size)
    assert found.value > 0.98 and ("family" in found.models) == (max(size) >= 3)


def test_a_size_must_be_named_where_none_is_the_only_square_one() -> None:
    generator = np.random.default_rng(0)
    layers = [
        Layer("net", str(k), generator.normal(size=(20, 1, k)).astype(np.float32), None, None, 0.0)
        for k in (5, 7)
    ]
    with pytest.raises(kf.KeyFiltersError, match="1×5, 1×7; type size="):
        kf.discover_keys(kf.FilterBank(layers))
    with pytest.raises(kf.KeyFiltersError, match="no 1×9 filters"):
        kf.discover_keys(kf.FilterBank(layers), size=(1, 9))


def test_keys_of_a_window_without_models() -> None:
    generator = np.random.default_rng(0)
    filters = generator.normal(size=(80, 2, 2)).astype(np.float32)
    bank = kf.FilterBank([Layer("net", "conv", filters, None, None, 0.0)])
    few = {"keys": 2, "count": 6, "rounds": 1, "kinds": ["lines"]}
    found = discover_keys(bank, nulls=(), **few)
    assert found.keys.window == (2, 2) and list(found.models) == ["key", "share"]
    assert found.words == f"2 keys explain {found.value:.1%} of the filters' variance."
    assert repr(found) == f"Discovery({found.words.rstrip('.')})"
    assert "family" not in found._repr_html_()
    row = [Layer("net", "row", filters.reshape(80, 1, 4), None, None, 0.0)]
    assert discover_keys(kf.FilterBank(row), nulls=(), **few).keys.window == (1, 4)


def test_noise_of_two_models_that_count_alike_does_not_exceed_its_null() -> None:
    """The null has the covariance of what is measured, in which a small model weighs as much."""
    generator = np.random.default_rng(0)
    rough = generator.normal(size=(3000, 5, 5))
    smooth = gaussian_filter(generator.normal(size=(300, 13, 13)), (0, 1.5, 1.5))[:, 4:9, 4:9]
    layers = [
        Layer(name, "a", x.astype(np.float32), None, None, 0.0)
        for name, x in (("rough", rough), ("smooth", smooth))
    ]
    found = discover_keys(
        kf.FilterBank(layers), keys=8, kinds=["lines"], count=24, rounds=1, balance=True,
        nulls=["covariance"],
    )  # fmt: skip
    assert found.value == pytest.approx(found.nulls["covariance"], abs=0.03)

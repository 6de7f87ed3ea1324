from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import keyfilters as kf
from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.filter_rows import FilterRows


def layer(
    model: str = "net", name: str = "conv", size: tuple[int, int] = (3, 3), n: int = 4
) -> Layer:
    weight = np.random.default_rng(len(name) + n).normal(size=(n, *size)).astype(np.float32)
    return Layer(model, name, weight, (2, 1), None, 0.5, 1, "a note")


def test_stack_keeps_weights_and_says_where_they_are_from() -> None:
    bank = FilterBank([layer(name="a"), layer(name="b", size=(5, 5)), layer(name="c", n=2)])
    filters, table = bank.stack(3)
    assert filters.dtype == np.float32
    np.testing.assert_array_equal(filters[4:], bank.layers[2].weight)
    assert table["layer"].tolist() == ["a"] * 4 + ["c"] * 2
    assert table["channel"].tolist() == [0, 1, 2, 3, 0, 1]
    np.testing.assert_allclose(table["norm"], np.sqrt((filters**2).sum((1, 2))), rtol=1e-6)
    np.testing.assert_allclose(table["mean"], filters.mean((1, 2)), atol=1e-6)
    assert bank.sizes == {(3, 3): 6, (5, 5): 4}


def test_a_size_that_is_not_there() -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"no 7×7 filters .* it holds: 3×3"):
        FilterBank([layer()]).stack(7)


def test_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    odd = layer(name="odd", size=(1, 7))
    odd.weight[0, 0, 0] = np.nan
    bank = FilterBank([layer(), odd], [("net/stem", "dense")])
    bank.save(tmp_path / "new" / "bank.safetensors")
    loaded = FilterBank.load(tmp_path / "new" / "bank.safetensors")
    assert loaded.skipped == bank.skipped
    for a, b in zip(bank.layers, loaded.layers, strict=True):
        assert (a.model, a.name, a.stride, a.dilation, a.depth, a.multiplier, a.note) == (
            (b.model, b.name, b.stride, b.dilation, b.depth, b.multiplier, b.note)
        )
        np.testing.assert_array_equal(a.weight.view(np.uint32), b.weight.view(np.uint32))
    assert repr(kf.read(tmp_path / "new" / "bank.safetensors")) == repr(bank)


@pytest.mark.parametrize("content", [b"", b"12345678" * 4])
def test_load_refuses_what_is_no_bank(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match=r"x\.safetensors"):
        FilterBank.load(tmp_path / "x.safetensors")


def test_geometry_is_kept_and_old_banks_still_load(tmp_path: Path) -> None:
    w = np.ones((4, 1, 5), np.float32)
    new = Layer("net", "a", w, (1, 2), (1, 1), 0.0, 2, "", 2, (0, 1, 0, 2), 1)
    same = Layer("net", "b", w, None, None, 1.0, padding="same")
    FilterBank([new, same]).save(tmp_path / "b.safetensors")
    one, two = FilterBank.load(tmp_path / "b.safetensors").layers
    assert (one.groups, one.padding, one.ndim) == (2, (0, 1, 0, 2), 1)
    assert (two.groups, two.padding, two.ndim) == (None, "same", 2)
    old = {"model": "net", "name": "a", "stride": [2, 1], "dilation": None, "depth": 0.5}
    notes = {"layers": json.dumps([old | {"multiplier": 1, "note": "n"}]), "skipped": "[]"}
    save_file({"00000": w}, tmp_path / "old.safetensors", {"format": "keyfilters-bank-1", **notes})
    [layer] = FilterBank.load(tmp_path / "old.safetensors").layers
    assert layer.stride == (2, 1) and layer.padding is None and layer.ndim == 2


def test_windows_that_are_not_square(tmp_path: Path) -> None:
    sizes = [(1, 7), (7, 1), (4, 4), (2, 6), (22, 1)]
    bank = FilterBank(layer(name=str(size), size=size) for size in sizes)
    for size in sizes:
        assert bank.stack(size)[0].shape == (4, *size)
    bank.save(tmp_path / "b.safetensors")
    assert FilterBank.load(tmp_path / "b.safetensors").sizes == bank.sizes


def test_joined_banks_keep_models_apart() -> None:
    bank = FilterBank([layer()]) + FilterBank([layer()]) + FilterBank([layer(model="other")])
    assert bank.models == ["net", "net (2)", "other"]


def test_filters_without_a_shape_are_listed() -> None:
    weight = np.zeros((4, 3, 3), np.float32)
    weight[1] = 0.3
    weight[2, 0, 0] = np.inf
    weight[3, 0, 0] = 1.0
    bank = FilterBank([Layer("net", "conv", weight, None, None, 0.0)])
    assert bank.unusable()["flaw"].tolist() == ["dead", "constant", "non-finite"]
    assert bank.stack(3)[1]["flaw"].tolist() == ["dead", "constant", "non-finite", ""]


def test_shapes_that_are_no_filters_and_sizes_of_any_integer() -> None:
    w = np.ones((8, 1, 7, 7), np.float32)
    with pytest.raises(KeyFiltersError, match=r"got float32 of shape \(8, 2, 7, 7\)"):
        Layer("m", "c", w.repeat(2, axis=1), None, None, 0.0)
    with pytest.raises(KeyFiltersError, match="got complex64 of shape"):
        Layer("m", "c", w[:, 0] * 1j, None, None, 0.0)
    layer = Layer("m", "c", w, None, None, 0.0)  # as PyTorch stores it
    assert layer.size == (7, 7) and np.shares_memory(layer.weight, w)
    bank = FilterBank([layer])
    for size in (np.int64(7), (np.int32(7), 7), [7, 7], np.array([7, 7])):
        assert len(bank.stack(size)[0]) == 8  # type: ignore[arg-type]
    for bad in (7.0, "77", (7,), None):
        with pytest.raises(KeyFiltersError, match=r"expected a size as k or \(k_y, k_x\)"):
            bank.stack(bad)  # type: ignore[arg-type]


def test_banks_of_others_and_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    for notes, message in (
        ({"layers": "[]"}, None),
        ({"layers": "[{}]"}, "cannot be read as a filter bank"),
        ({"layers": "[1]"}, "cannot be read as a filter bank"),
        ({"layers": "[]", "skipped": "[1]"}, "cannot be read as a filter bank"),
        ({}, "cannot be read as a filter bank"),
    ):
        save_file({"x": np.ones(1)}, path, metadata={"format": "keyfilters-bank-1", **notes})
        if message is None:
            assert not FilterBank.load(path).skipped
        else:
            with pytest.raises(KeyFiltersError, match=message):
                FilterBank.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_tensors_of_others_are_no_bank(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"conv.weight": np.ones((4, 1, 3, 3), np.float32)}, path, metadata=metadata)
    with pytest.raises(SourceError, match="not a filter bank"):
        FilterBank.load(path)


def test_no_rows_of_a_bank_are_no_filters() -> None:
    bank = FilterBank([layer(size=(1, 7)), layer(size=(1, 7))])
    none, some = (FilterRows(bank, np.array(rows, np.int64)) for rows in ([], [1, 5, 6]))
    assert len(none) == 0 and none.shape == (0, 0, 0) and none[:].shape == (0, 0, 0)
    assert some.shape == (3, 1, 7) and some[3:].shape == (0, 1, 7)
    np.testing.assert_array_equal(some[1:], bank.stack((1, 7))[0][[5, 6]])

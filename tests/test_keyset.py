from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from keyfilters.assignment import Assignment
from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.key_files import FORMAT
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import (
    PUBLISHED,
    published_filters,
    published_parameters,
    read_filters,
)

ENDINGS = (".txt", ".npy", ".npz", ".safetensors")


def by_loop(keys: KeySet, w: NDArray[Any]) -> list[tuple[int, float, float, float]]:
    rows = []
    for f in w.astype(np.float64):
        b = f.mean()
        products = [float((x * (f - b)).sum()) for x in keys.filters]
        index = max(range(len(products)), key=lambda i: abs(products[i]))
        rest = f - products[index] * keys.filters[index] - b
        rows.append((index, products[index], b, float(np.sqrt((rest**2).sum()))))
    return rows


def filters_of_many_kinds(keys: KeySet, n: int = 40) -> NDArray[np.float64]:
    """Noise; keys with much, little and no noise; keys on small and large constants."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(n, keys.size, keys.size)) / keys.size
    some = keys.filters[rng.integers(len(keys), size=n)] * rng.normal(size=(n, 1, 1))
    parts = [noise, some, some + 0.3 * noise, some + 1e-3 * noise, some + 0.2, some - 50.0]
    return np.concatenate(parts)


def assert_same(found: Assignment, expected: Assignment, rtol: float) -> None:
    np.testing.assert_array_equal(found.index, expected.index)
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("count", "size"), [(8, 7), (1, 5), (30, 3), (5, 4), (3, 11)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4"])
def test_assignment_equals_a_loop(count: int, size: int, dtype: str) -> None:
    keys = KeySet.random(count, size)
    w = filters_of_many_kinds(keys).astype(dtype)
    found = keys.assign(w)
    index, a, b, residual = map(np.array, zip(*by_loop(keys, w), strict=True))
    np.testing.assert_array_equal(found.index, index)
    precise = np.float64 if dtype == np.float64 else np.float32
    assert found.index.dtype == np.int64 and {x.dtype for x in found[1:]} == {np.dtype(precise)}
    norm = np.linalg.norm(w.astype(np.float64), axis=(1, 2))
    for value, expected in ((found.a, a), (found.b * size, b * size), (found.residual, residual)):
        assert (np.abs(value - expected) <= 48 * np.finfo(precise).eps * norm).all()


def test_keys_are_assigned_to_themselves() -> None:
    keys = KeySet.published("lindeberg2026-B")
    for dtype in (np.float32, np.float64):
        eps = np.finfo(dtype).eps
        index, a, b, residual = keys.assign(keys.filters.astype(dtype))
        assert index.tolist() == list(range(8))
        np.testing.assert_allclose(a, 1, rtol=4 * eps)
        assert np.abs(b).max() < eps and residual.max() < 4 * eps


def test_factor_carries_sign_and_scale_and_constant_the_mean() -> None:
    keys = KeySet.random(6, 5)
    w = np.random.default_rng(2).normal(size=(50, 5, 5))
    found = keys.assign(w)
    for scale, shift in ((-1.0, 0.0), (3.0, -2.0), (-1e-200, 0.0), (1e200, 0.0), (1e-3, 1e3)):
        index, a, b, residual = keys.assign(scale * w + shift)
        np.testing.assert_array_equal(index, found.index)
        np.testing.assert_allclose(a, scale * found.a, rtol=1e-8)
        np.testing.assert_allclose(b, scale * found.b + shift, rtol=1e-8)
        np.testing.assert_allclose(residual, abs(scale) * found.residual, rtol=1e-8)
    index, a, b, _ = keys.assign(np.float32(-0.25) * keys.filters.astype(np.float32) + 7)
    assert index.tolist() == list(range(6))
    np.testing.assert_allclose(a, -0.25, rtol=1e-5)
    np.testing.assert_allclose(b, 7, rtol=1e-6)


def test_filters_as_they_come() -> None:
    keys = KeySet.published("lindeberg2026-A-joint", 5)
    w = filters_of_many_kinds(keys).astype(np.float32)
    expected = keys.assign(w)
    fixed = w.copy()
    fixed.flags.writeable = False
    leaf = torch.tensor(w, requires_grad=True)
    for other in (fixed, w.copy(order="F"), leaf, torch.tensor(w.transpose(0, 2, 1).copy()).mT):
        assert_same(keys.assign(other), expected, 0)
    short = torch.tensor(w).bfloat16()
    assert_same(keys.assign(short), keys.assign(short.float()), 0)
    whole = np.arange(50).reshape(2, 5, 5)
    assert_same(keys.assign(whole), keys.assign(whole.astype(np.float64)), 0)
    assert_same(keys.assign(w, device="cpu"), expected, 0)
    for empty in (w[:0], torch.tensor(w[:0])):
        assert [len(x) for x in keys.assign(empty)] == [0] * 4


def unaligned(w: NDArray[Any], shift: int) -> NDArray[Any]:
    """The same numbers at an address that is no multiple of a vector's length."""
    bytes_ = np.empty(w.nbytes + 128, np.uint8)
    start = -bytes_.ctypes.data % 64 + shift * w.itemsize
    moved = bytes_[start : start + w.nbytes].view(w.dtype).reshape(w.shape)
    moved[...] = w
    return moved


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "size"), [(8, 5), (1, 3), (40, 7)])
def test_the_bits_depend_on_filters_and_keys_only(count: int, size: int, dtype: type) -> None:
    keys = KeySet.random(count, size)
    w = filters_of_many_kinds(keys, 30).astype(dtype)
    w[5], w[17, 0, 0] = 1.0, np.nan
    expected = keys.assign(w)
    for chunk in (1, 7, len(w) - 1, len(w), 10**6):
        assert_same(keys.assign(w, chunk=chunk), expected, 0)
    for shift in (1, 3, 7):
        assert_same(keys.assign(unaligned(w, shift), chunk=50), expected, 0)
    for start, stop in ((0, 1), (3, 20), (41, len(w))):
        part = Assignment(*(x[start:stop] for x in expected))
        assert_same(keys.assign(w[start:stop]), part, 0)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            assert_same(keys.assign(w, chunk=16), expected, 0)
            assert torch.get_num_threads() == number
        torch.set_float32_matmul_precision("medium")
        assert_same(keys.assign(w), expected, 0)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_every_short_type_is_assigned_in_float32() -> None:
    keys = KeySet.random(4, 5)
    w = torch.randn(8, 5, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        found = keys.assign(w.to(dtype))
        assert found.a.dtype == np.float32
        assert_same(found, keys.assign(w.to(dtype).float()), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_filters_without_a_shape(dtype: type[np.floating[Any]]) -> None:
    keys = KeySet.random(4, 5)
    w = np.random.default_rng(0).normal(size=(6, 5, 5)).astype(dtype)
    w[0], w[1] = 0, -0.3
    w[2, 1, 1], w[3, 0, 0], w[4, 2, 2] = np.nan, np.inf, -np.inf
    index, a, b, residual = keys.assign(w)
    assert index[:5].tolist() == [0, 0, -1, -1, -1] and index[5] >= 0
    assert a[:2].tolist() == residual[:2].tolist() == [0, 0]
    assert b[:2].tolist() == [0, dtype(-0.3)]
    assert np.isnan([a[2:5], b[2:5], residual[2:5]]).all()
    assert np.isfinite([a[5], b[5], residual[5]]).all()


def test_extreme_float32() -> None:
    keys = KeySet.random(4, 5)
    w = np.random.default_rng(1).normal(size=(20, 5, 5))
    expected = keys.assign(w)
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        found = keys.assign((w * scale).astype(np.float32))
        np.testing.assert_array_equal(found.index, expected.index)
        np.testing.assert_allclose(found.residual / scale, expected.residual, rtol=1e-5)
        np.testing.assert_allclose(found.a / scale, expected.a, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_go_to_the_first_key(dtype: type[np.floating[Any]]) -> None:
    ten = KeySet.random(10).filters
    keys = KeySet.from_filters(np.concatenate([ten, -ten, ten]))
    w = filters_of_many_kinds(keys).astype(dtype)
    expected = keys[:10].assign(w).index
    for chunk in (1, 5000):
        np.testing.assert_array_equal(keys.assign(w, chunk=chunk).index, expected)
    # Mirrored edges answer alike to what is even.
    edges = KeySet.published("lindeberg2026-B-joint")[[3, 1]]
    even = np.random.default_rng(0).normal(size=(100, 7, 7)).astype(dtype)
    even = even + even[:, :, ::-1]
    assert set(edges.assign(even).index) == {0}


def test_reconstruct() -> None:
    keys = KeySet.random(5, 4)
    w = filters_of_many_kinds(keys)
    w[0, 0, 0] = np.nan
    index, a, b, residual = keys.assign(w)
    back = keys.reconstruct(index, a, b)
    assert back.shape == w.shape and back.dtype == np.float64 and np.isnan(back[0]).all()
    rest = np.linalg.norm((w - back)[1:], axis=(1, 2))
    np.testing.assert_allclose(rest, residual[1:], atol=1e-12)
    assert keys.reconstruct(index, a.astype(np.float32), b).dtype == np.float32
    assert keys.reconstruct([1], [2], [3]).dtype == np.float64
    assert np.isnan(keys.reconstruct([-1], [1.0], [0.0])).all()
    assert keys.reconstruct(*keys.assign(w[:0])[:3]).shape == (0, 4, 4)
    for arguments, message in (
        (([5], [1.0], [0.0]), "no key has number 5"),
        (([-2], [1.0], [0.0]), "no key has number -2"),
        (([0.0], [1.0], [0.0]), "got float64 of shape"),
        (([0, 1], [1.0], [0.0, 0.0]), r"\(2,\), \(1,\) and \(2,\)"),
    ):
        with pytest.raises(KeyFiltersError, match=message):
            keys.reconstruct(*arguments)


def test_keys_are_centred_units_that_nobody_changes() -> None:
    given = np.random.default_rng(0).normal(size=(6, 5, 5)) * 10.0 ** np.arange(-6, 6, 2)[
        :, None, None
    ] + np.linspace(-1, 1, 6).reshape(6, 1, 1)
    before = given.copy()
    keys = KeySet.from_filters(given)
    centred = given - given.mean(axis=(1, 2), keepdims=True)
    expected = centred / np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(keys.filters, expected, atol=1e-9)
    np.testing.assert_allclose(keys.filters.sum(axis=(1, 2)), 0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(keys.filters, axis=(1, 2)), 1, atol=1e-15)
    np.testing.assert_array_equal(given, before)
    assert keys.names == tuple(f"key {i}" for i in range(1, 7)) and keys.models is None
    with pytest.raises(ValueError, match="read-only"):
        keys.filters[0] = 0
    for again in (KeySet.from_filters(keys.filters), dataclasses.replace(keys, licence="free")):
        np.testing.assert_array_equal(again.filters, keys.filters)
    tensor = torch.tensor(given, requires_grad=True)
    np.testing.assert_array_equal(KeySet.from_filters(tensor).filters, keys.filters)
    short = torch.tensor(centred).bfloat16()  # which NumPy does not know
    np.testing.assert_array_equal(
        KeySet.from_filters(short).filters, KeySet.from_filters(short.double()).filters
    )
    huge = KeySet.from_filters(np.array([[[1e300, -1e300], [1e-300, 0]]])).filters
    np.testing.assert_allclose(huge, [[[0.5**0.5, -(0.5**0.5)], [0, 0]]], atol=1e-15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys(name: str) -> None:
    for size in (3, 9):
        keys = KeySet.published(name, size)
        drawn = published_filters(name, size)
        drawn -= drawn.mean(axis=(1, 2), keepdims=True)
        drawn /= np.linalg.norm(drawn, axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(keys.filters, drawn, atol=1e-14)
    assert keys.size == 9 and [key.split()[0] for key in keys.names] == list("12345678")
    assert keys.models is not None
    table = published_parameters(name)[["operator", "sigma_x", "sigma_y", "alpha"]]
    pd.testing.assert_frame_equal(keys.models, table)
    assert repr(keys) == f"KeySet(8 keys of 9×9: {name})"
    same = KeySet.published(name.removeprefix("lindeberg2026-"), 9)
    assert same.provenance == keys.provenance


def test_random_keys_repeat() -> None:
    one, same, other = (KeySet.random(8, 5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.filters, same.filters)
    assert np.abs(one.filters - other.filters).max() > 0.1
    assert one.size == 5 and len(one) == 8 and "seed 3" in one.provenance


def test_keys_drawn_from_the_null_filters_of_a_bank() -> None:
    ramp = np.outer(*2 * [np.arange(5.0) - 2])
    weight = (ramp * np.linspace(-1, 2, 30)[:, None, None]).astype(np.float32)
    own = FilterBank([Layer("net", "a", weight, (1, 1), (1, 1), 0.0)])
    unit = ramp.ravel() / np.linalg.norm(ramp)
    for name, alike in (("covariance:8", True), ("phase:8", False), ("white:8", False)):
        keys = KeySet.named(name, 5, seed=1, bank=own)
        again = KeySet.named(name, 5, seed=1, bank=own)
        assert len(keys) == 8 and np.array_equal(keys.filters, again.filters)
        cosine = np.abs(keys.filters.reshape(8, -1) @ unit)
        assert (cosine > 0.99).all() == alike
        spectra = np.abs(np.fft.fft2(keys.filters)) - np.abs(np.fft.fft2(unit.reshape(5, 5)))
        assert bool(np.abs(spectra).max() < 1e-5) is (name != "white:8")
    with pytest.raises(KeyFiltersError, match="bank="):
        KeySet.named("covariance:8", 5)


def test_no_keys_are_learned_from_filters_without_a_shape() -> None:
    dead = FilterBank([Layer("net", "conv", np.zeros((9, 5, 5)), None, None, 0.0)])
    for name in ("lines:4", "covariance:4"):
        with pytest.raises(KeyFiltersError, match="no 5×5 filters to learn keys from"):
            KeySet.named(name, 5, bank=dead)


def test_subsets() -> None:
    keys = dataclasses.replace(KeySet.published("lindeberg2026-C2"), licence="free")
    mask = np.arange(8) >= 6
    for chosen, rows in ((2, [2]), (-1, [7]), (slice(6, None), [6, 7]), ([4, 0], [4, 0])):
        some = keys[chosen]
        np.testing.assert_array_equal(some.filters, keys.filters[rows])
        assert some.names == tuple(keys.names[i] for i in rows)
        assert (some.provenance, some.licence) == (keys.provenance, "free")
        assert some.models is not None and keys.models is not None
        pd.testing.assert_frame_equal(some.models, keys.models.iloc[rows].reset_index(drop=True))
    assert keys[mask].names == keys[mask.tolist()].names == keys[6:].names
    assert [one.names[0] for one in keys] == list(keys.names)
    assert repr(KeySet.random(3, 2)[0].assign(np.ones((1, 2, 2)))).startswith("Assignment(index=")
    assert repr(KeySet.from_filters(keys.filters[:1])) == "KeySet(1 key of 7×7)"
    with pytest.raises(IndexError, match="out of bounds"):
        keys[8]
    with pytest.raises(KeyFiltersError, match=r"shape \(K, k_y, k_x\), got \(0, 7, 7\)"):
        keys[8:]
    with pytest.raises(KeyFiltersError, match="stands twice"):
        keys[[1, 1]]


@pytest.mark.parametrize("ending", [*ENDINGS, ".TXT", ".NPZ"])
def test_round_trip(tmp_path: Path, ending: str) -> None:
    odd = ('a "name"', "with: a colon # and more", "line\nbreak\u2028σ")
    told = 'from "here": a\n# line'
    named = KeySet.from_filters(KeySet.random(3, 4).filters, odd, told, "CC BY 4.0")
    assert (named.names, named.provenance, named.licence) == (odd, told, "CC BY 4.0")
    for keys in (KeySet.published("lindeberg2026-B"), KeySet.random(9, 31), named):
        file = tmp_path / "new" / "folders" / f"keys{ending}"
        keys.save(file)
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        back = KeySet.from_file(str(file))
        np.testing.assert_array_equal(back.filters, keys.filters)
        if ending == ".npy":
            assert back.provenance == "read from keys.npy" and back.models is None
            continue
        assert (back.names, back.provenance) == (keys.names, keys.provenance)
        assert back.licence == keys.licence
        if keys.models is None:
            assert back.models is None
        else:
            pd.testing.assert_frame_equal(back.models, keys.models)
        if ending == ".safetensors":  # what other programs read
            np.testing.assert_array_equal(load_file(file)["filters"], keys.filters)
        if ending.lower() != ".npz":
            np.testing.assert_array_equal(read_filters(file)[0], keys.filters)


def test_files_of_others(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(3, 5, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", w)
    np.savez(tmp_path / "b.npz", edge=w[0], spot=w[1:])
    save_file({"w": w}, tmp_path / "c.safetensors", metadata={"format": "pt"})
    text = "# a comment\n\nedge:\n1 2\n3 5\n\nspot:\n9 1\n1 1\n"
    (tmp_path / "d.txt").write_text(text)
    for name, names in (
        ("a.npy", ("Filter 1", "Filter 2", "Filter 3")),
        ("b.npz", ("edge", "spot 1", "spot 2")),
        ("c.safetensors", ("w 1", "w 2", "w 3")),
        ("d.txt", ("edge", "spot")),
    ):
        keys = KeySet.from_file(tmp_path / name)
        assert keys.names == names and keys.provenance == f"read from {name}"
        if name != "d.txt":
            np.testing.assert_array_equal(keys.filters, KeySet.from_filters(w).filters)


def test_the_published_file(shared: Path, tmp_path: Path) -> None:
    keys = KeySet.from_file(shared / "master_key_filters_babaiee2025.txt")
    assert repr(keys) == "KeySet(8 keys of 7×7: read from master_key_filters_babaiee2025.txt)"
    assert keys.names == tuple(f"Filter {i}" for i in range(1, 9))
    index, a, _, _ = KeySet.published("lindeberg2026-A").assign(keys.filters)
    assert index.tolist() == list(range(8))
    cosine = [0.842, 0.944, 0.914, 0.904, 0.937, 0.942, 0.997, 0.994]  # science.md, section 3
    np.testing.assert_allclose(np.abs(a), cosine, atol=6e-4)
    assert np.flatnonzero(a < 0).tolist() == [1, 2]
    reference = json.loads((shared / "lindeberg2026_reference.json").read_text())
    drawn = KeySet.from_filters(list(reference["templates_method_B"].values()))
    keys_b = KeySet.published("lindeberg2026-B")
    np.testing.assert_allclose(keys_b.filters, drawn.filters, atol=5e-5)
    keys.save(tmp_path / "k.npz")
    np.testing.assert_array_equal(KeySet.from_file(tmp_path / "k.npz").filters, keys.filters)


@pytest.mark.parametrize("ending", ENDINGS)
def test_bad_files(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"keys{ending}"
    with pytest.raises(KeyFiltersError, match="there is no file"):
        KeySet.from_file(file)
    for content in (b"\x80" * 300, b"PK\x03\x04" + b"\x01" * 50):
        file.write_bytes(content)
        with pytest.raises(KeyFiltersError, match=r"is not a readable .* file|expected numbers"):
            KeySet.from_file(file)
    keys = KeySet.random(4, 3)
    for notes in ("no JSON", "[]", "{}", '{"models": null, "names": ["a", "b"], "licence": ""}'):
        if ending == ".safetensors":
            save_file({"filters": keys.filters}, file, metadata={FORMAT: notes})
        elif ending == ".npz":
            np.savez(file, **{"filters": keys.filters, FORMAT: np.array(notes)})
        elif ending == ".txt":
            file.write_text(f"# {FORMAT} {notes}\n1 2 3\n4 5 6\n7 8 0\n")
        else:
            continue
        with pytest.raises(KeyFiltersError, match=f"keys{ending} is a damaged file of keys"):
            KeySet.from_file(file)
    np.save(tmp_path / "flat.npy", np.ones((2, 3, 3)))
    with pytest.raises(KeyFiltersError, match="'Filter 1' is constant"):
        KeySet.from_file(tmp_path / "flat.npy")
    with pytest.raises(
        KeyFiltersError, match=r"cannot write keys to k\.csv; expected one of \.txt"
    ):
        keys.save(tmp_path / "k.csv")
    with pytest.raises(KeyFiltersError, match=r"cannot read filters from k\.csv"):
        KeySet.from_file(tmp_path / "k.csv")


def test_bad_keys() -> None:
    w = np.random.default_rng(0).normal(size=(3, 5, 5))
    flat, zero, broken = w.copy(), w.copy(), w.copy()
    flat[1], zero[2], broken[0, 0, 0] = 0.1, 0, np.nan
    cases: list[tuple[Any, Any, str]] = [
        (flat, None, "'key 2' is constant; a key needs finite taps that differ"),
        (zero, ["a", "b", "c"], "'c' is zero"),
        (broken, None, "'key 1' is non-finite"),
        (w[0], None, r"expected keys of shape \(K, k_y, k_x\), got \(5, 5\)"),
        (w[:, None], None, r"got \(3, 1, 5, 5\)"),
        (w[:0], None, r"got \(0, 5, 5\)"),
        (torch.tensor(w + 1j), None, "expected keys of real numbers, got complex128"),
        (w > 0, None, "expected keys of real numbers, got bool"),
        (w, ["a", "b"], "3 keys need as many names, got 2"),
        (w, ["a", "b", "a"], "names of keys must differ, but 'a' stands twice"),
    ]
    for filters, names, message in cases:
        with pytest.raises(KeyFiltersError, match=message):
            KeySet.from_filters(filters, names)
    with pytest.raises(KeyFiltersError, match="3 keys need as many rows of models, got 1"):
        KeySet(w, ("a", "b", "c"), models=pd.DataFrame({"operator": ["dx"]}))
    for count, size in ((0, 7), (-1, 7), (3, 1)):
        with pytest.raises(KeyFiltersError, match="at least two taps"):
            KeySet.random(count, size)
    with pytest.raises(KeyFiltersError, match="the nearest names are: lindeberg2026-B"):
        KeySet.published("lindeberg2026_B")
    with pytest.raises(KeyFiltersError, match="no published keys of 2×4"):
        KeySet.published("lindeberg2026-B", (2, 4))


def test_bad_filters() -> None:
    keys = KeySet.random(2)
    cases: list[tuple[Any, str]] = [
        (np.ones((4, 5, 5)), r"these keys are 7×7, but the filters are 5×5; .*size=5\)"),
        (
            torch.ones(4, 5, 7),
            r"these keys are 7×7, but the filters are 5×7; .*size=\(5, 7\)\)",
        ),
        (np.ones((4, 1, 7, 7)), r"shape \(n, 7, 7\), got float64 of shape \(4, 1, 7, 7\)"),
        (np.ones((7, 7)), r"got float64 of shape \(7, 7\)"),
        (torch.ones(4, 7, 7, dtype=torch.complex64), "got complex64"),
        (np.ones((4, 7, 7), dtype=bool), "got bool"),
        (np.full((4, 7, 7), "x"), "got str"),
    ]
    for w, message in cases:
        with pytest.raises(KeyFiltersError, match=message):
            keys.assign(w)
    with pytest.raises(KeyFiltersError, match="chunk must be at least 1, got 0"):
        keys.assign(np.ones((4, 7, 7)), chunk=0)


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (4, 4), (3, 6), (2, 2), (1, 2)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_keys_of_any_window(tmp_path: Path, size: tuple[int, int], ending: str) -> None:
    keys = KeySet.random(3, size, seed=2)
    assert keys.window == size and keys.size == (size if size[0] != size[1] else size[0])
    assert f"{size[0]}×{size[1]}" in repr(keys) and "<img" in keys._repr_html_()
    keys.save(tmp_path / f"keys{ending}")
    again = KeySet.from_file(tmp_path / f"keys{ending}")
    np.testing.assert_array_equal(again.filters, keys.filters)
    w = np.random.default_rng(0).normal(size=(40, *size)).astype(np.float32)
    index, a, b, residual = keys.assign(w)
    centred = w - w.mean((1, 2), keepdims=True, dtype=np.float64)
    products = np.einsum("nyx,kyx->nk", centred, keys.filters)
    np.testing.assert_allclose(np.abs(a), np.abs(products).max(1), atol=1e-5)
    left = np.linalg.norm((w - keys.reconstruct(index, a, b)).reshape(40, -1), axis=1)
    np.testing.assert_allclose(residual, left, atol=1e-5)


def test_published_keys_of_rows_and_even_windows() -> None:
    row = KeySet.published("lindeberg2026-B", size=(1, 9))
    column = KeySet.published("lindeberg2026-B", size=(9, 1))
    assert [name[0] for name in row.names] == list("24578")
    assert [name[0] for name in column.names] == list("13678")
    assert row.models is not None and row.models["operator"].tolist()[2] == "dx"
    even = KeySet.published("lindeberg2026-B", size=4)
    assert len(even) == 8 and even.size == 4
    for size in ((2, 5), 2, 1):
        with pytest.raises(KeyFiltersError, match="no published keys"):
            KeySet.published("lindeberg2026-B", size)
    with pytest.raises(KeyFiltersError, match="none of 1×5"):
        KeySet.consensus((1, 5))


def test_named_keys_are_those_of_their_seed_kind_and_size(tmp_path: Path) -> None:
    named = KeySet.named("random:4", 5, seed=3).filters
    np.testing.assert_array_equal(named, KeySet.random(4, 5, 3).filters)
    assert not np.allclose(named, KeySet.named("random:4", 5, seed=4).filters)
    keys, twins = KeySet.consensus(5), KeySet.consensus(5, idealised=True)
    assert keys.filters.shape == twins.filters.shape and not np.allclose(
        keys.filters, twins.filters
    )
    keys.save(tmp_path / "keys.safetensors")
    file = str(tmp_path / "keys.safetensors")
    np.testing.assert_array_equal(KeySet.named(file, 5).filters, keys.filters)
    with pytest.raises(KeyFiltersError, match="5×5"):
        KeySet.named(file, 7)


def test_receptive_fields_of_idealised_keys_are_the_keys() -> None:
    keys = KeySet.published("lindeberg2026-B")[[4, 5, 7]]
    fields, table = keys.idealised()
    cosine = np.abs((keys.filters * fields.filters).sum((1, 2)))
    assert (cosine > 0.995).all() and fields.names == keys.names
    assert table["family"].tolist() == ["x:d y:0", "x:0 y:d", "x:0 y:0"]

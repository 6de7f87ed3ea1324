from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import keyfilters as kf
from keyfilters.receptive_fields import read_filters


def test_the_published_file(shared: Path) -> None:
    filters, names = read_filters(shared / "master_key_filters_babaiee2025.txt")
    assert filters.shape == (8, 7, 7) and filters.dtype == np.float64
    assert names == tuple(f"Filter {i}" for i in range(1, 9))
    assert filters[0, 4, 3] == 0.936427


def test_text_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "filters.txt"
    file.write_bytes(
        b"\xef\xbb\xbf# a comment\r\nedge:\r\n\r\n1, 2\r\n3 4e-1 # row\r\nspot :\r\n5 6\r\n7 8"
    )
    filters, names = read_filters(file)
    assert names == ("edge", "spot") and filters.tolist() == [[[1, 2], [3, 0.4]], [[5, 6], [7, 8]]]
    file.write_text("1 2\n3 4\n\n\n5 6\n7 8\n")
    filters, names = read_filters(str(file))
    assert names == ("Filter 1", "Filter 2") and filters.shape == (2, 2, 2)


def test_arrays_of_every_format(tmp_path: Path) -> None:
    filters = np.random.default_rng(0).normal(size=(3, 5, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", filters)
    np.save(tmp_path / "depthwise.npy", filters[:, None])
    np.save(tmp_path / "one.npy", filters[0])
    np.savez(tmp_path / "b.npz", edges=filters[:2], spot=filters[2])
    save_file({"w": torch.tensor(filters).bfloat16()}, tmp_path / "c.safetensors")
    for name in ("a.npy", "depthwise.npy"):
        read, names = read_filters(tmp_path / name)
        np.testing.assert_array_equal(read, filters)
        assert names == ("Filter 1", "Filter 2", "Filter 3")
    assert read_filters(tmp_path / "one.npy")[0].shape == (1, 5, 5)
    read, names = read_filters(tmp_path / "b.npz")
    np.testing.assert_array_equal(read, filters)
    assert names == ("edges 1", "edges 2", "spot")
    read, names = read_filters(tmp_path / "c.safetensors")
    np.testing.assert_allclose(read, filters, rtol=1e-2)
    assert names == ("w 1", "w 2", "w 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no filters"),
        ("Filter 1:\nFilter 2:\n1 2\n3 4\n", "'Filter 1' has no rows"),
        ("Filter 1:\n1 2\n3 4\nFilter 2:\n", "'Filter 2' has no rows"),
        ("Filter 1:\n1 2\n3\n", "line 3: expected 2 numbers as in the first row of 'Filter 1'"),
        ("Filter 1:\n1 x\n", r"line 2: expected numbers or a line 'Filter N:', got '1 x'"),
        ("1 2\n3 4\n\n1 2 3\n4 5 6\n7 8 9\n", "'Filter 1' is 2×2 and 'Filter 2' is 3×3"),
        ("1 2\n3 nan\n", "'Filter 1' holds a number that is not finite"),
    ],
)
def test_bad_text(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "f.txt"
    file.write_text(text)
    with pytest.raises(kf.KeyFiltersError, match=message):
        read_filters(file)


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".npz", ".safetensors"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"broken{suffix}"
    with pytest.raises(kf.KeyFiltersError, match="there is no file"):
        read_filters(file)
    for content in (np.random.default_rng(0).bytes(300), b"\x80"):
        file.write_bytes(content)
        with pytest.raises(kf.KeyFiltersError, match=r"is not a readable .* file"):
            read_filters(file)
    if suffix != ".txt":
        file.write_bytes(b"")
        with pytest.raises(kf.KeyFiltersError, match=r"is not a readable .* file"):
            read_filters(file)


def test_truncated_and_foreign_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones((2, 3, 3)))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "b.npy", np.array(["x"]))
    np.save(tmp_path / "c.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "d.npy", np.ones((2, 3, 3, 3)))
    np.save(tmp_path / "e.npy", np.ones((0, 3, 3)))
    (tmp_path / "f.csv").write_text("1")
    for name, message in (
        ("a.npz", "is not a readable .npz file"),
        ("b.npy", "expected real numbers"),
        ("c.npy", "is not a readable .npy file"),
        ("d.npy", r"has shape \(2, 3, 3, 3\), expected"),
        ("e.npy", "holds no filters"),
        ("f.csv", "expected one of .txt, .npy, .npz, .safetensors"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=message):
            read_filters(tmp_path / name)

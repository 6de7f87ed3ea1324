from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from keyfilters.errors import KeyFiltersError
from keyfilters.tensor_files import TYPES, forget_pages, map_tensors, save_tensors


def test_tensors_of_every_type_are_read_by_others_and_mapped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    held = {f"ω {kind}": np.arange(6).reshape(3, 2).astype(kind) for kind in TYPES}
    held |= {"empty": np.empty((0, 3), np.float32), "part": np.arange(10.0)[::3]}
    held["big-endian"] = np.arange(4, dtype=">i4")
    save_tensors(path, held, {"note": "é"})
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"note": "é"}
    for found in (load_file(path), map_tensors(path)):
        assert found.keys() == held.keys()
        for name, array in held.items():
            forget_pages(found[name])  # which the next use reads again
            assert found[name].dtype == array.dtype.newbyteorder("<")
            np.testing.assert_array_equal(found[name], array)
    mapped = map_tensors(path)["ω float32"]
    assert not mapped.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def test_a_full_disk_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": np.ones(3)}, {})
    monkeypatch.setattr("keyfilters.files.os.fsync", refuse)
    with pytest.raises(KeyFiltersError, match="last good file stays"):
        save_tensors(path, {"b": np.ones(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert list(map_tensors(path)) == ["a"]

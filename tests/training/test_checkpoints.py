from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe
from keyfilters.training.checkpoints import digest, identity, read_state, write_state, write_whole


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keyfilters.training.checkpoints.os.fsync", refuse)


def test_a_full_disk_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "new" / "x", b"old")
    full_disk(monkeypatch)
    message = r"cannot write .*x: No space left on device; the last one is kept"
    with pytest.raises(KeyFiltersError, match=message):
        write_whole(tmp_path / "new" / "x", b"new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x"]
    assert (tmp_path / "new" / "x").read_bytes() == b"old"
    with pytest.raises(KeyFiltersError, match=r"y: No space left on device$"):
        write_whole(tmp_path / "new" / "y", b"new")
    with pytest.raises(KeyFiltersError, match=r"cannot write .*z"):
        write_whole(tmp_path / "new" / "x" / "z", b"new")


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    recipe = Recipe()
    own = identity(recipe, {"name": "digits"}, "")
    assert read_state(tmp_path, own) is None
    write_state(tmp_path, {"identity": own, "step": 3})
    state = read_state(tmp_path, own)
    assert state is not None and state["step"] == 3
    often = replace(recipe, checkpoint=replace(recipe.checkpoint, steps=7))
    assert read_state(tmp_path, identity(often, {"name": "digits"}, "")) is not None
    other = replace(recipe, seed=1, optimiser=replace(recipe.optimiser, lr=0.1))
    with pytest.raises(KeyFiltersError) as caught:
        read_state(tmp_path, identity(other, {"name": "photos"}, "abc"))
    for part in (
        "seed: 0 there, 1 here",
        "optimiser.lr: 0.001 there, 0.1 here",
        "images.name: 'digits' there, 'photos' here",
        "first_weights: '' there, 'abc' here",
        "choose another folder, or delete it",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK nonsense"])
def test_damaged_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(KeyFiltersError, match=r"is no checkpoint of this version .*; delete it"):
        read_state(tmp_path, {})


def test_digests_tell_weights_names_and_frozen_parameters_apart() -> None:
    torch.manual_seed(0)
    one, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    assert digest(one) == digest(other)
    other.weight.requires_grad_(False)
    assert digest(one) != digest(other)
    assert digest(nn.Sequential(one)) != digest(one)
    before = digest(one)
    one(torch.rand(2, 3, 2, 2))
    assert digest(one) != before

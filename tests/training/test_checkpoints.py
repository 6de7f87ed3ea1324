from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe
from keyfilters.training.checkpoints import digest, identity, read_state, write_state


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    recipe = Recipe()
    own = identity(recipe, {"name": "digits"}, "by the recipe")
    assert read_state(tmp_path, own) is None
    write_state(tmp_path, {"identity": own, "step": 3})
    state = read_state(tmp_path, own)
    assert state is not None and state["step"] == 3
    often = replace(recipe, checkpoint=replace(recipe.checkpoint, steps=7))
    assert read_state(tmp_path, identity(often, {"name": "digits"}, "by the recipe")) is not None
    other = replace(recipe, seed=1, optimiser=replace(recipe.optimiser, lr=0.1))
    with pytest.raises(KeyFiltersError) as caught:
        read_state(tmp_path, identity(other, {"name": "photos"}, "abc"))
    for part in (
        "seed (there 0, asked 1)",
        "optimiser.lr (there 0.001, asked 0.1)",
        "images.name (there digits, asked photos)",
        "first_weights (there by the recipe, asked abc)",
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

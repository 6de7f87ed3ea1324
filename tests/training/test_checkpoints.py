"""What identifies a run, and that its checkpoints are whole and continued by no other."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, load_data, train
from keyfilters.training.checkpoints import fingerprint, identity, newest, save
from keyfilters.training.processes import make_accelerator, own_accelerate
from tests.training.networks import network


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", samples=64)


def structure(module: nn.Module) -> str:
    return fingerprint(module)["structure"]


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Acting(nn.Module):
    """A module whose activation is an attribute and no module."""

    def __init__(self, act: Callable[..., Any]) -> None:
        super().__init__()
        self.act = act


class Counting(nn.Linear):
    """A module whose state holds more than tensors."""

    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def hooked(hook: Callable[..., Any]) -> nn.Module:
    module = nn.BatchNorm2d(3)
    module.register_forward_pre_hook(hook)
    return module


def keep(module: nn.Module, _: Any) -> None:
    module.eval()


def nothing(module: nn.Module, _: Any) -> None:
    return None


def parametrised() -> nn.Module:
    module = nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ReLU(), nn.Sigmoid()),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.3)),
        (nn.BatchNorm2d(3), hooked(keep)),
        (hooked(nothing), hooked(keep)),
        (nn.Linear(2, 2), parametrised()),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.Identity())),
        (nn.Conv2d(2, 2, 1, stride=1), nn.Conv2d(2, 2, 1, stride=2)),
        (Acting(torch.relu), Acting(torch.sigmoid)),
        (Acting(torch.relu), Acting(partial(torch.sigmoid))),
    ],
)
def test_structures_that_differ(one: nn.Module, other: nn.Module) -> None:
    assert structure(one) != structure(other)


def test_the_same_structure_made_twice() -> None:
    assert structure(network(0)) == structure(network(1))
    assert structure(parametrised()) == structure(parametrised())
    assert structure(hooked(keep)) == structure(hooked(keep))


def test_states_tell_weights_names_and_frozen_parameters_apart() -> None:
    torch.manual_seed(0)
    one, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    state = fingerprint(one)["state"]
    assert state == fingerprint(other)["state"]
    other.weight.requires_grad_(False)
    assert state != fingerprint(other)["state"]
    assert fingerprint(nn.Sequential(one))["state"] != state
    one(torch.rand(2, 3, 2, 2))
    assert fingerprint(one)["state"] != state
    plain, counting = nn.Linear(2, 2), Counting(2, 2)
    counting.load_state_dict({**plain.state_dict(), "_extra_state": None})
    assert fingerprint(counting)["state"] == fingerprint(plain)["state"], "of tensors only"


def test_source_of_ones_own_classes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for version, factor in (("first", 2), ("second", 3)):
        lines = ("from torch import nn", "class Own(nn.Module):", f"    factor = {factor}")
        (tmp_path / f"{version}.py").write_text("\n".join(lines))
        spec = spec_from_file_location("own", tmp_path / f"{version}.py")  # the same name
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own", module)
        spec.loader.exec_module(module)
        found.append(structure(module.Own()))
    assert found[0] != found[1]


def test_a_run_that_differs_is_refused_by_what_differs(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recipe.from_dict({"schedule": {"steps": 1}})
    train(made, tmp_path, model=network(), data=digits, device="cpu")
    often = replace(made, checkpoint=replace(made.checkpoint, steps=7))
    train(often, tmp_path, model=network(), data=digits, device="cpu")
    other = replace(made, seed=1, optimiser=replace(made.optimiser, lr=0.1))
    net = nn.Sequential(network(), nn.Identity())
    with pytest.raises(KeyFiltersError) as caught:
        train(other, tmp_path, model=net, data=digits, device="cpu")
    for part in (
        "seed (there 0, asked 1)",
        "optimiser.lr (there 0.001, asked 0.1)",
        "structure",
    ):
        assert part in str(caught.value)
    monkeypatch.setattr("keyfilters.training.checkpoints.version", lambda name: "0.0")
    with pytest.raises(KeyFiltersError, match=r"versions.keyfilters \(there .*asked 0.0"):
        train(made, tmp_path, model=network(), data=digits, device="cpu")


@pytest.mark.parametrize("content", ["", "PK nonsense", "{}"])
def test_damaged_checkpoints(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "progress.json").write_text(content)
    with pytest.raises(KeyFiltersError, match="is no checkpoint of this version"):
        newest(tmp_path, {})


def test_a_checkpoint_that_was_being_written_does_not_count(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def die(*_: Any) -> None:
        raise KilledError

    recipe, model = Recipe(), network()
    with own_accelerate():
        accelerator = make_accelerator(recipe, "cpu")
        own = identity(recipe, model, digits, accelerator)
        accelerator.prepare(model)
        progress = {"identity": own, "finished": False}
        save(accelerator, tmp_path, model, {}, {**progress, "step": 3})
        monkeypatch.setattr(os, "fsync", die)
        with pytest.raises(KilledError):
            save(accelerator, tmp_path, model, {}, {**progress, "step": 6})
    found = newest(tmp_path, own)
    assert found is not None and found[0].name == "checkpoint-3"


@pytest.mark.parametrize("fails", [False, True])
def test_other_processes_add_their_buffers_and_leave_the_rest_to_the_first(
    tmp_path: Path, fails: bool
) -> None:
    part = tmp_path / ".unfinished-checkpoint"
    part.mkdir()
    (part / "of the first").write_text("")

    def save_state(folder: Path) -> None:
        assert folder == part
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    other = SimpleNamespace(
        process_index=1,
        is_main_process=False,
        wait_for_everyone=lambda: None,
        save_state=save_state,
    )
    model = network(batchnorm=True)
    progress = {"step": 3, "finished": False}
    if fails:
        with pytest.raises(KeyFiltersError, match="No space left"):
            save(other, tmp_path, model, {}, progress)
        assert [x.name for x in part.iterdir()] == ["of the first"]
        return
    save(other, tmp_path, model, {"ema": model.state_dict()}, progress)
    assert {x.name for x in part.iterdir()} == {"of the first", "buffers_1.safetensors"}
    held = load_file(part / "buffers_1.safetensors")
    assert held.keys() == dict(model.named_buffers()).keys()
    assert [x.name for x in tmp_path.iterdir()] == [part.name], "it gets its name from the first"


def test_files_of_a_checkpoint_that_are_damaged(tmp_path: Path, digits: Data) -> None:
    sections = {"schedule": {"steps": 4}, "checkpoint": {"steps": 2}, "batch": {"size": 8}}
    made = Recipe.from_dict(sections)
    with pytest.raises(KeyFiltersError):  # the third step is not finite
        train(made, tmp_path, model=Poisoned(), data=digits, device="cpu")
    (tmp_path / "checkpoint-2" / "optimizer.bin").write_bytes(b"none")
    with pytest.raises(KeyFiltersError, match="checkpoint-2 is damaged"):
        train(made, tmp_path, model=Poisoned(), data=digits, device="cpu")


class Poisoned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = network(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return self.inner(x) * (float("nan") if self.seen == 3 else 1)

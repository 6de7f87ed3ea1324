"""The state of a run on disk, continued only by a run that would have the same result.

Accelerate saves and loads models, optimiser, loader, scaler and random generators. It writes file
by file into its folder; so that a killed run leaves whole checkpoints only, the folder gets its
name when all is written. It keeps the buffers of the first process only, and no identity.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError, refuse_unwritten
from keyfilters.options import differing
from keyfilters.training.data import Data
from keyfilters.training.recipe import Recipe

__all__ = ["fingerprint", "identity", "load", "newest", "save"]

PACKAGES = ("keyfilters", "torch", "timm", "numpy", "accelerate", "pillow")
UNFINISHED = ".unfinished-checkpoint"
PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


def identity(recipe: Recipe, model: nn.Module, data: Data, accelerator: Any) -> dict[str, Any]:
    """Return all that the result depends on; the files of streamed images are read for it."""
    from accelerate.utils import broadcast_object_list

    values = {key: value for key, value in recipe.to_dict().items() if key != "checkpoint"}
    values["data"].pop("workers")
    content: list[Any] = [None]
    if accelerator.is_main_process:
        content = [{part: items.checksum() for part, items in data.items.items()}]
    broadcast_object_list(content)
    device = {"type": accelerator.device.type, "processes": accelerator.num_processes}
    versions = {"python": python_version(), **{name: version(name) for name in PACKAGES}}
    found = {
        **values,
        "images": {**data.describe(), "content": content[0]},
        "network": fingerprint(model),
        "device": device,
        "versions": versions,
    }
    return json.loads(json.dumps(found))  # as it comes back from a file


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Return digests of a module: its structure, and its state.

    The structure is the class, settings and hooks of every module, and the source of classes that
    are neither torch's nor timm's; the state is all tensors, and which of them train.

    >>> fingerprint(nn.ReLU()) == fingerprint(nn.Sigmoid())
    False
    """
    structure, state = hashlib.sha256(), hashlib.sha256()
    for name, module in model.named_modules():
        structure.update(repr((name, *_structure(module))).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            state.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    state.update(repr(frozen).encode())
    return {"structure": structure.hexdigest()[:16], "state": state.hexdigest()[:16]}


def _structure(module: nn.Module) -> Iterator[Any]:
    kind = type(module)
    yield f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] not in ("torch", "timm"):
        with suppress(OSError, TypeError):  # typed into an interpreter
            yield inspect.getsource(kind)
    for name, value in sorted(vars(module).items()):
        if name.endswith("_hooks") and isinstance(value, dict):
            yield name, [_called(hook) for hook in value.values()]
        elif name == "training" or isinstance(value, Tensor | nn.Module | dict):
            continue
        elif isinstance(value, PLAIN) or (
            isinstance(value, list | tuple) and all(isinstance(x, PLAIN) for x in value)
        ):
            yield name, value
        elif callable(value):
            yield name, _called(value)


def _called(function: Any) -> str:
    inner = getattr(function, "func", function)  # of a partial
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}.{named.__qualname__}"


def newest(out: Path, own: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the last checkpoint of a run and its progress; refuse that of another run."""
    found = {int(x.name[11:]): x for x in out.glob("checkpoint-*") if x.name[11:].isdecimal()}
    if not found:
        return None
    folder = found[max(found)]
    try:
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_bytes())
        there = progress["identity"]
    except (OSError, ValueError, KeyError) as error:
        message = f"{folder} is no checkpoint of this version ({type(error).__name__})"
        raise KeyFiltersError(f"{message}; delete it or choose another folder") from error
    if changed := differing(there, own):
        message = f"{folder} is of another run, which differs in {'; '.join(changed)}"
        raise KeyFiltersError(f"{message}; choose another folder, or delete it")
    return folder, progress


def save(
    accelerator: Any,
    out: Path,
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint in place of the last one; every process calls this.

    Args:
        accelerator: has model, optimiser, loader and scaler; a finished run needs none of them.
        out: folder of the run.
        model: whose buffers every process keeps for itself.
        states: further tensors by name: the running mean, and the best weights so far.
        progress: JSON: identity, step, history and the like.

    Raises:
        KeyFiltersError: it cannot be written; the last good checkpoint stays.
    """
    from safetensors.torch import save_file

    name, rank = f"checkpoint-{progress['step']}", accelerator.process_index
    part = out / UNFINISHED
    with (
        refuse_unwritten(out / name, "the last good checkpoint stays"),
        _removed(part, accelerator),
    ):
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        if not progress["finished"]:
            accelerator.save_state(part)
            buffers = {key: x.cpu().contiguous() for key, x in model.named_buffers()}
            save_file(buffers, part / f"buffers_{rank}.safetensors")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for key, state in states.items():
                save_file(dict(state), part / f"{key}.safetensors")
            (part / "progress.json").write_text(json.dumps(progress))
            for file in part.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            shutil.rmtree(out / name, ignore_errors=True)
            part.rename(out / name)
            for old in out.glob("checkpoint-*"):
                if old.name != name and old.name[11:].isdecimal():
                    old.rename(part)  # killed here, no half of it is called a checkpoint
                    shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()


@contextmanager
def _removed(part: Path, accelerator: Any) -> Iterator[None]:
    """Remove what is not finished if it cannot be, or is interrupted."""
    try:
        yield
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        raise


def load(accelerator: Any, folder: Path, model: nn.Module) -> None:
    """Give model, optimiser, loader, scaler and generators the state of a checkpoint."""
    from safetensors.torch import load_file

    try:
        accelerator.load_state(folder)
        own = load_file(folder / f"buffers_{accelerator.process_index}.safetensors")
    except Exception as error:  # damaged files make pickle and zip raise nearly anything
        message = f"{folder} is damaged ({type(error).__name__}: {error})"
        raise KeyFiltersError(f"{message}; delete it or choose another folder") from error
    for key, x in model.named_buffers():
        x.copy_(own[key])

"""What a run leaves behind: the model, how it went, and what ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from keyfilters.environment import environment
from keyfilters.files import write_whole

__all__ = ["Trained", "summarise", "write_history", "write_results", "write_weights"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model and how it went.

    Attributes:
        model: the trained module, on the CPU and in evaluation mode.
        ema: the same with the running mean of the weights, if the recipe asked for one.
        history: one row an epoch: epoch, step, lr, train_loss, test_loss and test_top1, of `ema`
            ema_loss and ema_top1, and the seconds of training so far, without testing.
        summary: the last row, and what ran: device, environment (threads of torch, versions,
            machine), parameters, data, images a second.
    """

    model: nn.Module
    ema: nn.Module | None
    history: pd.DataFrame
    summary: dict[str, Any]


def summarise(
    model: nn.Module,
    row: Mapping[str, Any],
    images: int,
    data: Mapping[str, Any],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Return the last row of the history, and what ran.

    Args:
        model: as trained.
        row: the last of the history.
        images: number of images trained with, counted anew in every epoch.
        data: as the data describe themselves.
        skipped: name → reason of the images that could not be read when their turn came.
    """
    sizes = [(x.numel(), x.requires_grad) for x in model.parameters()]
    return {
        **row,
        "images_per_second": round(images / max(row["seconds"], 1e-9), 1),
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, free in sizes if free),
        "data": {**data, "skipped": [*data["skipped"], *map(list, sorted(skipped.items()))]},
        "environment": {"threads": torch.get_num_threads(), **environment()},
    }


def write_history(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``metrics.jsonl``, one line an epoch; raises as `write_whole`."""
    write_whole(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the state of a module as safetensors, parametrised weights as they are used.

    Raises as `write_whole`.
    """
    from safetensors.torch import save
    from torch.nn.utils import parametrize

    state = model.state_dict()
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        inside = f"{name}." if name else ""
        for tensor in list(module.get_submodule("parametrizations")._modules):
            for key in [k for k in state if k.startswith(f"{inside}parametrizations.{tensor}.")]:
                del state[key]
            with torch.no_grad():
                state[f"{inside}{tensor}"] = getattr(module, tensor)
    write_whole(path, save({k: x.detach().cpu().contiguous().clone() for k, x in state.items()}))


def write_results(out: Path, trained: Trained) -> None:
    """Write ``model.safetensors``, ``ema.safetensors`` if there is one, and ``summary.json``.

    Raises:
        KeyFiltersError: the folder cannot be written to.
    """
    for name, net in (("model", trained.model), ("ema", trained.ema)):
        if net is not None:
            write_weights(out / f"{name}.safetensors", net)
    text = json.dumps(trained.summary, indent=1, ensure_ascii=False)
    write_whole(out / "summary.json", f"{text}\n")

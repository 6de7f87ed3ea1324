"""What a run leaves behind: the model, how it went, and what ran."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError, refuse_damage
from keyfilters.files import typed_path, write_whole
from keyfilters.training.models import create_network
from keyfilters.training.recipe import Recipe

__all__ = ["Trained", "load_trained", "state_of", "write_results", "write_weights"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model and how it went.

    Attributes:
        model: the trained module, on the CPU and in evaluation mode, with the weights of the epoch
            that was best on the validation images, or the last where there are none.
        ema: the same with the running mean of the weights, if the recipe asked for one.
        history: one row an epoch: epoch, step, lr, train_loss; with validation images val_loss and
            val_top1, of `ema` ema_val_loss and ema_val_top1; and the seconds of training so far.
            The last row also has test_loss and test_top1, ema_loss and ema_top1: of `model` and
            `ema`, on the test images, which are looked at once.
        summary: the last row; best_epoch; and what ran: device, environment, parameters, data,
            images a second.
    """

    model: nn.Module
    ema: nn.Module | None
    history: pd.DataFrame
    summary: dict[str, Any]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state of a module, on the CPU, as safetensors takes it."""
    state = module.state_dict().items()
    return {key: x.detach().cpu().contiguous().clone() for key, x in state}


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the state of a module as safetensors, parametrised weights as they are used.

    Raises:
        KeyFiltersError: the file cannot be written.
    """
    from safetensors.torch import save
    from torch.nn.utils import parametrize

    state = state_of(model)
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        inside = f"{name}." if name else ""
        for tensor in list(module.get_submodule("parametrizations")._modules):
            for key in [k for k in state if k.startswith(f"{inside}parametrizations.{tensor}.")]:
                del state[key]
            with torch.no_grad():
                state[f"{inside}{tensor}"] = getattr(module, tensor).cpu().contiguous().clone()
    write_whole(path, save(state))


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


def load_trained(folder: str | os.PathLike[str], *, ema: bool = False) -> nn.Module:
    """Return the network of a folder that `train` wrote, in evaluation mode.

    It is the recipe's, with plain filters, also where they were held to keys. It takes images that
    were normalised by the mean and std under "data" in ``summary.json``. Of a module that was given
    to `train` only the weights are there: it must be of the recipe's architecture.

    Args:
        folder: with ``recipe.toml``, ``summary.json`` and ``model.safetensors``.
        ema: whether to take the running mean of the weights, ``ema.safetensors``.

    Raises:
        KeyFiltersError: a file is missing, damaged, or of another network than the recipe's.
    """
    from safetensors.torch import load_file

    folder = typed_path(folder)
    with refuse_damage(folder / "recipe.toml", "the recipe of a training"):
        values = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
        recipe = Recipe.from_dict({key: values[key] for key in ("seed", "model") if key in values})
    with refuse_damage(folder / "summary.json", "what a finished training wrote"):
        data = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["data"]
        classes, channels = len(data["classes"]), int(data["training"][1])
    network = create_network(recipe, classes, channels, pretrained=False)
    weights = folder / f"{'ema' if ema else 'model'}.safetensors"
    with refuse_damage(weights, "the weights of a training"):
        state = load_file(weights)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise KeyFiltersError(
            f"{weights} holds another network than {recipe.model.name} of recipe.toml; build it as "
            "it was given to `train`, and load the weights into it"
        ) from error
    return network.eval()

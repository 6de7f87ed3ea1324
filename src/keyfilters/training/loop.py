"""Training any module on any data with accelerate, so that it can be stopped at any time.

A run is a function of its recipe, its data and its first weights: on the CPU to the last bit,
whether or not it was interrupted.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.threads import one_thread_if_forked
from keyfilters.training import checkpoints
from keyfilters.training.data import Data, load_data
from keyfilters.training.models import make_model
from keyfilters.training.processes import (
    make_accelerator,
    own_accelerate,
    own_randomness,
    own_threads,
)
from keyfilters.training.recipe import Recipe
from keyfilters.training.results import Trained
from keyfilters.training.run import OnStep, Progress, Run

__all__ = ["train"]


def train(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Train a model by a recipe; with `out`, continue where an interrupted run was.

    Started by torchrun or ``accelerate launch``, every process takes its share of each batch. The
    last images of an epoch that fill no batch are left out; the next epoch has another order. A run
    continues with the number of threads that it began with: the last bits of sums depend on it. In
    a forked process it has one.

    Args:
        recipe: what to do.
        out: folder for checkpoint-N/, recipe.toml, metrics.jsonl (one line an epoch), weights of
            single steps where the recipe keeps some, and at the end model.safetensors,
            ema.safetensors and summary.json. A run that is finished there is only read.
        model: a module to train, in place, not the recipe's: it maps normalised images
            ``(b, c, h, w)`` to logits ``(b, classes)``. Parameters that require no gradient stay
            as they are.
        data: images to train with, not the recipe's.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
        progress: called now and then with the steps done, the number of all and what happens.
        on_step: called on the main process before the first step and after every one, with the
            number of steps done, the model, which it must not alter, and accelerate's
            ``Accelerator``, to whose trackers it may write.

    Raises:
        KeyFiltersError: a value of the recipe that does not fit the data or the model, a loss that
            is not finite, a folder that holds another run or cannot be written to; a recipe that
            treats filters, without a model whose filters were treated.
        MissingExtraError: accelerate is not installed.

    >>> recipe = Recipe.from_dict({"schedule": {"steps": 3}, "optimiser": {"lr": 0.01}})
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> train(recipe, model=net, device="cpu").history[["epoch", "step"]].values.tolist()
    [[1, 3]]
    """
    if model is None and recipe.changes_model:
        raise KeyFiltersError(
            "the recipe has a section [filters], which `train` leaves to you: give it as model= "
            "what recipe.filters.apply_ has treated"
        )
    folder = None if out is None else Path(out)
    with own_accelerate(), one_thread_if_forked():
        accelerator = make_accelerator(recipe, device, folder)
        data = load_data(**recipe.to_dict()["data"]) if data is None else data
        model = make_model(recipe, data) if model is None else model
        own, found = {}, None
        if folder is not None:
            own = checkpoints.identity(recipe, model, data, accelerator)
            found = checkpoints.newest(folder, own)
        threads = found[1]["threads"] if found else torch.get_num_threads()
        with own_randomness(accelerator.device), own_threads(threads):
            run = Run(recipe, model, data, accelerator, folder, progress, on_step)
            try:
                return run.go(own, found)
            finally:
                run.close()

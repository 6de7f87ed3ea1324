"""Training any module on any data, on one device or many, so that it can be stopped at any time.

A run is a function of its recipe, its data and its first weights: on the CPU to the last bit,
whether or not it was interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from keyfilters.errors import KeyFiltersError, UnreadableError
from keyfilters.files import write_whole
from keyfilters.training.batches import Batches
from keyfilters.training.checkpoints import digest, identity, read_state, write_state
from keyfilters.training.datasets import Data, load_data
from keyfilters.training.devices import accelerator_for, gathered, own_randomness, own_threads
from keyfilters.training.evaluate import accuracy
from keyfilters.training.models import make_model, try_model
from keyfilters.training.optimise import learning_rate, make_optimiser
from keyfilters.training.recipe import Recipe
from keyfilters.training.results import (
    Trained,
    summarise,
    write_history,
    write_results,
    write_weights,
)

__all__ = ["BY_RECIPE", "Progress", "train"]

Progress = Callable[[int, int, str], object]

BY_RECIPE = "by the recipe"
CHECKED = 100  # steps after which the losses are looked at, which waits for the device
SHOWN = 0.5  # seconds between two calls of progress


def train(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | None = None,
    first_weights: str = "",
    data: Data | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a model by a recipe; with `out`, go on where an interrupted run was.

    Started by torchrun or ``accelerate launch``, every process takes its share of each batch. The
    last images of an epoch that fill no batch are left out; the next epoch has another order. A run
    goes on with the number of threads that it began with: the last bits of sums depend on it.

    Args:
        recipe: what to do.
        out: folder for checkpoint.pt, recipe.toml, metrics.jsonl (one line an epoch), weights of
            single steps where the recipe keeps some, and at the end model.safetensors,
            ema.safetensors and summary.json. A run that is finished there is only read.
        model: a module to train, in place, not the recipe's: it maps normalised images
            ``(b, c, h, w)`` to logits ``(b, classes)``. Parameters that require no gradient stay
            as they are.
        first_weights: what tells the first weights of `model` from others, where a run goes on;
            by default a digest of them. Say `BY_RECIPE` of a model that the recipe determines.
        data: images to train with, not the recipe's.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
        progress: called now and then with the steps done, the number of all and what happens.

    Raises:
        KeyFiltersError: a value of the recipe that does not fit the data or the model, a loss that
            is not finite, a folder that holds another run or cannot be written to.
        MissingExtraError: accelerate is not installed.

    >>> recipe = Recipe.from_dict({"schedule": {"steps": 3}, "optimiser": {"lr": 0.01}})
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> train(recipe, model=net, device="cpu").history[["epoch", "step"]].values.tolist()
    [[1, 3]]
    """
    accelerator = accelerator_for(recipe, device)
    data = load_data(**recipe.to_dict()["data"]) if data is None else data
    first = BY_RECIPE if model is None else first_weights or digest(model)
    model = make_model(recipe, data) if model is None else model
    own = identity(recipe, data.describe(), first)
    state = None if out is None else read_state(Path(out), own)
    main = accelerator.is_main_process
    threads = state["threads"] if state else torch.get_num_threads()
    with own_randomness(accelerator.device), own_threads(threads):
        run = _Run(recipe, model, data, accelerator, own, Path(out) if out and main else None)
        return run.go(state, progress if main else None)


class _Run:
    """What a run works on, and its loop."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        accelerator: Any,
        own: dict[str, Any],
        out: Path | None,
    ) -> None:
        from timm.utils import ModelEmaV3

        place, count = accelerator.process_index, accelerator.num_processes
        self.recipe, self.data, self.accelerator = recipe, data, accelerator
        self.identity, self.out = own, out  # only the main process has a folder to write to
        self.batches = Batches(recipe, data, accelerator.device, place, count)
        self.per_epoch, self.steps = self.batches.per_epoch, recipe.steps(len(data.images))
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(accelerator.device).to(memory_format=layout)
        with accelerator.autocast():
            try_model(self.model, next(self.batches.test())[0][:2], len(data.classes))
        self.ema = None
        if recipe.ema.decay:
            self.ema = ModelEmaV3(model, recipe.ema.decay, use_warmup=recipe.ema.warmup)
        self.optimiser = make_optimiser(model, recipe.optimiser)
        self.losses = torch.zeros(self.per_epoch, device=accelerator.device)  # of this epoch
        self.history: list[dict[str, Any]] = []
        self.step, self.seconds = 0, 0.0

    def go(self, state: dict[str, Any] | None, progress: Progress | None) -> Trained:
        """Train from the start or a checkpoint to the end."""
        if state is not None:
            self._load(state)
            if state["finished"]:
                return self._trained(state["summary"])
        if self.out is not None:
            write_whole(self.out / "recipe.toml", self.recipe.to_toml())
            if state is None:
                self._keep()
        plain = "forward" not in vars(self.model)
        runner = self.accelerator.prepare_model(self.model)
        optimiser: Any = self.optimiser
        if self.accelerator.scaler is not None:  # else the wrapper only costs time at every step
            optimiser = self.accelerator.prepare_optimizer(optimiser)
            if state is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        try:
            self._loop(runner, optimiser, progress)
        finally:
            self.accelerator.unwrap_model(runner, keep_fp32_wrapper=False)
            if plain:  # accelerate puts the method back as an attribute
                vars(self.model).pop("forward", None)
        count, data = self.step * self.recipe.batch.size, self.identity["images"]
        summary = {
            **summarise(self.model, self.history[-1], count, data, self.batches.skipped),
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
        }
        trained = self._trained(summary)
        if self.out is not None:
            write_results(self.out, trained)
            write_state(self.out, self._state(summary))
        return trained

    def _loop(self, runner: nn.Module, optimiser: Any, progress: Progress | None) -> None:
        recipe, parts = self.recipe, self.batches.parts
        smoothing, clip = recipe.augmentation.label_smoothing, recipe.optimiser.clip
        free = [x for group in optimiser.param_groups for x in group["params"]]
        started = shown = time.perf_counter()
        runner.train()
        while self.step < self.steps:
            lr = learning_rate(recipe, self.step, self.per_epoch, self.steps)
            for group in optimiser.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            place = self.step % self.per_epoch
            for part in range(parts):
                x, y = self.batches.part(self.step, part)
                alone = part < parts - 1  # processes exchange gradients once, with the last part
                with self.accelerator.no_sync(runner) if alone else nullcontext():
                    loss = _loss(runner(x), y, smoothing) / parts
                    self.accelerator.backward(loss)
                self.losses[place].add_(loss.detach())
            if clip:
                self.accelerator.clip_grad_norm_(free, clip)
            optimiser.step()
            optimiser.zero_grad()
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.model, self.step)
            self._keep()

            now = time.perf_counter()
            if progress is not None and now > shown + SHOWN:
                progress(self.step, self.steps, f"epoch {(self.step - 1) // self.per_epoch + 1}")
                shown = now
            last = self.step % self.per_epoch == 0 or self.step == self.steps
            save = self.step % recipe.checkpoint.steps == 0 and self.step < self.steps
            if last or save or self.step % CHECKED == 0:
                train_loss = self._check(place + 1)
            if last or save:
                self.seconds += time.perf_counter() - started
                if last:
                    self._close_epoch(lr, train_loss)
                self.batches.skipped.update(gathered(self.accelerator, self.batches.skipped))
                if save and self.out is not None:
                    write_state(self.out, self._state(None))
                runner.train()
                started = time.perf_counter()

    def _keep(self) -> None:
        """Write the weights of this step, if they were asked for."""
        if self.out is not None and self.step in self.recipe.checkpoint.keep:
            write_weights(self.out / f"step-{self.step}.safetensors", self.model)

    def _check(self, done: int) -> float:
        """Return the mean loss of this epoch over all processes; refuse one that is not finite."""
        losses = self.accelerator.reduce(self.losses[:done].clone(), "mean").cpu()
        if bad := (~losses.isfinite()).nonzero().flatten().tolist():
            step = self.step - done + bad[0] + 1
            raise self._diverged(f"the loss is {float(losses[bad[0]])} at step {step}")
        return float(losses.mean())

    def _close_epoch(self, lr: float, train_loss: float) -> None:
        epoch = ceil(self.step / self.per_epoch)
        row = {"epoch": epoch, "step": self.step, "lr": lr, "train_loss": train_loss}
        row["test_loss"], row["test_top1"] = self._measure(self.model)
        if self.ema is not None:
            row["ema_loss"], row["ema_top1"] = self._measure(self.ema.module)
        self.history.append({**row, "seconds": round(self.seconds, 3)})
        self.losses.zero_()
        if self.out is not None:
            write_history(self.out, self.history)

    def _measure(self, model: nn.Module) -> tuple[float, float]:
        """Return loss and share of correct answers on the test images of all processes."""
        device = self.accelerator.device
        try:
            with self.accelerator.autocast():
                found = accuracy(model, self.batches.test(), topk=(1,), device=device)
            sums = [found["loss"] * found["count"], found["top1"] * found["count"], found["count"]]
        except UnreadableError:
            raise
        except KeyFiltersError:  # logits that are not finite; every process must learn of it
            sums = [float("nan")] * 3
        summed = self.accelerator.reduce(torch.tensor(sums, device=device), "sum").tolist()
        if not isfinite(summed[0]):
            raise self._diverged(f"answers to test images are not finite after step {self.step}")
        return summed[0] / summed[2], summed[1] / summed[2]

    def _diverged(self, what: str) -> KeyFiltersError:
        recipe = self.recipe
        which = f"{recipe.model.name} on {self.data.name}, {recipe.optimiser.name}"
        setting = f"lr {recipe.peak_lr:g}, precision {recipe.precision}, seed {recipe.seed}"
        mend = "lower optimiser.lr, or set optimiser.clip or schedule.warmup_epochs"
        return KeyFiltersError(f"{what} of the recipe ({which}, {setting}); {mend}")

    def _state(self, summary: dict[str, Any] | None) -> dict[str, Any]:
        """Return what a checkpoint holds; that of a finished run needs no optimiser."""
        finished, scaler = summary is not None, self.accelerator.scaler
        return {
            "identity": self.identity,
            "finished": finished,
            "summary": summary,
            "threads": torch.get_num_threads(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "skipped": self.batches.skipped,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "losses": None if finished else self.losses,
            "optimiser": None if finished else self.optimiser.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if not state["finished"]:
            self.optimiser.load_state_dict(state["optimiser"])
            self.losses.copy_(state["losses"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.batches.skipped.update(state["skipped"])

    def _trained(self, summary: dict[str, Any]) -> Trained:
        ema = None if self.ema is None else self.ema.module
        for net in (self.model, ema):
            if net is not None:
                net.to("cpu").to(memory_format=torch.contiguous_format).eval()
        return Trained(self.model, ema, pd.DataFrame(self.history), summary)


def _loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy in nats; the labels of mixed images are shares, and smooth already."""
    smoothing = smoothing if labels.ndim == 1 else 0.0
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

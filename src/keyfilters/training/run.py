"""One run of training: what it works on, its loop, and how it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from math import ceil, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from keyfilters.environment import environment
from keyfilters.errors import KeyFiltersError, UnreadableError
from keyfilters.files import write_whole
from keyfilters.seeds import child_integer
from keyfilters.training import checkpoints, processes
from keyfilters.training.batches import Batches
from keyfilters.training.data import Data
from keyfilters.training.evaluate import accuracy
from keyfilters.training.models import make_optimiser, make_schedule, try_model
from keyfilters.training.recipe import Recipe
from keyfilters.training.results import Trained, state_of, write_results, write_weights

__all__ = ["OnStep", "Progress", "Run"]

OnStep = Callable[[int, nn.Module, Any], object]
Progress = Callable[[int, int, str], object]

SHOWN = 0.5  # seconds between two calls of progress
PROGRESS = ("identity", "step", "seconds", "history", "losses", "best_epoch")  # as JSON
COLUMNS = {  # names of loss and share of correct answers
    ("validation", "model"): ("val_loss", "val_top1"),
    ("validation", "ema"): ("ema_val_loss", "ema_val_top1"),
    ("test", "model"): ("test_loss", "test_top1"),
    ("test", "ema"): ("ema_loss", "ema_top1"),
}


class Run:
    """What a run works on, and its loop."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        accelerator: Any,
        out: Path | None,
        progress: Progress | None,
        on_step: OnStep | None = None,
    ) -> None:
        from timm.utils import ModelEmaV3

        self.recipe, self.data, self.accelerator, self.out = recipe, data, accelerator, out
        self.main, self.progress = accelerator.is_main_process, progress
        self.on_step = on_step if self.main else None
        self.batches = Batches(recipe, data, accelerator)
        self.per_epoch, self.steps = self.batches.per_epoch, recipe.steps(len(data.images))
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(accelerator.device).to(memory_format=layout)
        if recipe.batch.sync_batchnorm and accelerator.num_processes > 1:
            self.model = processes.synchronise_(self.model, accelerator.device)
        example = torch.zeros(2, *data.images.shape[1:], device=accelerator.device)
        with accelerator.autocast():
            try_model(self.model, example.to(memory_format=layout), len(data.classes))
        self.nets, self.ema = {"model": self.model}, None
        if recipe.ema.decay:
            self.ema = ModelEmaV3(self.model, recipe.ema.decay, use_warmup=recipe.ema.warmup)
            self.nets["ema"] = self.ema.module
        optimiser = make_optimiser(self.model, recipe)
        self.scheduler = make_schedule(optimiser, recipe, self.per_epoch, self.steps)
        self.plain = "forward" not in vars(self.model)
        self.runner, self.optimiser = accelerator.prepare(self.model, optimiser)
        processes.keep_own_buffers_(self.runner)
        # Without a scaler the wrapper only costs time: it looks for a package at every step.
        self.stepping = optimiser if accelerator.scaler is None else self.optimiser
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of the steps of this epoch, over all processes
        self.waiting: list[Tensor] = []  # of the last steps: to look at one waits for the device
        self.best: dict[str, dict[str, Tensor]] = {}  # weights to keep
        self.best_epoch: dict[str, int] = {}
        self.step, self.seconds = 0, 0.0

    def go(self, own: dict[str, Any], found: tuple[Path, dict[str, Any]] | None) -> Trained:
        """Train to the end from the start, or from a checkpoint and its progress."""
        self.identity = own
        if found is None:
            from accelerate.utils import set_seed

            set_seed(child_integer(self.recipe.seed, "train", self.accelerator.process_index))
        else:
            self._load(*found)
            if found[1]["finished"]:
                return self._trained(found[1]["summary"])
        if self.out is not None and self.main:
            write_whole(self.out / "recipe.toml", self.recipe.to_toml())
        self._after_step()
        self._loop()
        summary = self._finish()
        trained = self._trained(summary)
        if self.out is not None:
            if self.main:
                write_results(self.out, trained)
            self._save(self.out, summary)
        return trained

    def close(self) -> None:
        """Take accelerate's wrappers off the model, and end the trackers."""
        self.accelerator.unwrap_model(self.runner, keep_fp32_wrapper=False)
        if self.plain:  # accelerate puts the method back as an attribute
            vars(self.model).pop("forward", None)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _loop(self) -> None:
        started = shown = time.perf_counter()
        self.runner.train()
        while self.step < self.steps:
            loss: Any = 0.0
            for x, y in self.batches.epoch(self.step // self.per_epoch):
                loss = loss + self._part(x, y) / self.recipe.batch.accumulation
                if not self.accelerator.sync_gradients:
                    continue
                self.waiting.append(loss)
                loss, group = 0.0, self.optimiser.param_groups[0]
                lr = group["lr"] / group.get("lr_scale", 1.0)
                self.step += 1
                self.scheduler.step_update(self.step)
                if self.ema is not None:
                    self.ema.update(self.model, self.step)
                self._after_step()
                now = time.perf_counter()
                if self.progress is not None and self.main and now > shown + SHOWN:
                    epoch = (self.step - 1) // self.per_epoch + 1
                    self.progress(self.step, self.steps, f"epoch {epoch}")
                    shown = now
                last = self.step % self.per_epoch == 0 or self.step == self.steps
                save = self.step % self.recipe.checkpoint.steps == 0 and self.step < self.steps
                if last or save:
                    self._look()
                    self.seconds += time.perf_counter() - started
                    if last:
                        self._close_epoch(lr)
                    self.batches.skipped.update(processes.gathered(self.batches.skipped))
                    if save and self.out is not None:
                        self._save(self.out, None)
                    self.runner.train()
                    started = time.perf_counter()
                if self.step == self.steps:
                    break

    def _part(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of a part in nats and its gradient; with the last part, a step."""
        smoothing, clip = self.recipe.augmentation.label_smoothing, self.recipe.optimiser.clip
        smoothing = smoothing if y.ndim == 1 else 0.0  # labels of mixed images are smooth already
        with self.accelerator.accumulate(self.runner):
            loss = functional.cross_entropy(self._answers(x), y, label_smoothing=smoothing)
            self.accelerator.backward(loss)
            if self.accelerator.num_processes > 1 and not self.losses and not self.waiting:
                processes.require_used(self.model)
            if self.accelerator.sync_gradients:
                if clip:
                    groups = self.optimiser.param_groups
                    free = [x for group in groups for x in group["params"]]
                    self.accelerator.clip_grad_norm_(free, clip)
                self.stepping.step()
                self.stepping.zero_grad()
        return loss.detach()

    def _answers(self, x: Tensor) -> Any:
        """Return the logits of a part; refuse parts of one image that batch normalisation does."""
        try:
            return self.runner(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            batch = self.recipe.batch
            raise KeyFiltersError(
                "batch normalisation learns from two images or more where they shrink to one "
                f"pixel; batch.size is {batch.size} in {batch.accumulation} parts: set a larger one"
            ) from error

    def _after_step(self) -> None:
        """Write the weights of this step, if they were asked for, and call `on_step`."""
        if self.out is not None and self.main and self.step in self.recipe.checkpoint.keep:
            write_weights(self.out / f"step-{self.step}.safetensors", self.model)
        if self.on_step is not None:
            self.on_step(self.step, self.model, self.accelerator)

    def _look(self) -> None:
        """Average the last losses over all processes; refuse one that is not finite."""
        found = self.accelerator.reduce(torch.stack(self.waiting), "mean").tolist()
        for i, loss in enumerate(found):
            if not isfinite(loss):
                step = self.step - len(found) + i + 1
                raise self._diverged(f"the loss is {loss} at step {step}")
        self.losses += found
        self.waiting.clear()

    def _close_epoch(self, lr: float) -> None:
        """Measure on the validation images, and note weights that are the best so far."""
        epoch, validated = ceil(self.step / self.per_epoch), "validation" in self.data.parts()
        row = {"epoch": epoch, "step": self.step, "lr": lr, "train_loss": fmean(self.losses)}
        processes.combine_batchnorm(self.nets.values(), self.accelerator.num_processes)
        for name, net in self.nets.items():
            loss, top1 = COLUMNS["validation", name]
            if validated:
                row[loss], row[top1] = self._measure(net, "validation")
            if validated and self.recipe.schedule.select == "best":
                rank = (-row[top1], row[loss])
                better = all(rank < (-x[top1], x[loss]) for x in self.history)
            else:
                better = self.step == self.steps
            if better:
                self.best[name], self.best_epoch[name] = state_of(net), epoch
        self.history.append({**row, "seconds": round(self.seconds, 3)})
        self.losses = []
        self._write_history()
        self.accelerator.log(row, step=self.step)

    def _finish(self) -> dict[str, Any]:
        """Take the best weights, look at the test images, and return the summary."""
        row = self.history[-1]
        for name, net in self.nets.items():
            net.load_state_dict(self.best[name])
            loss, top1 = COLUMNS["test", name]
            row[loss], row[top1] = self._measure(net, "test")
        self.batches.skipped.update(processes.gathered(self.batches.skipped))
        self._write_history()
        self.accelerator.log(row, step=self.step)
        sizes = [(x.numel(), x.requires_grad) for x in self.model.parameters()]
        described = self.data.describe()
        left = [*described["skipped"], *map(list, sorted(self.batches.skipped.items()))]
        count = self.step * self.recipe.batch.size
        return {
            **row,
            "best_epoch": self.best_epoch["model"],
            "images_per_second": round(count / max(row["seconds"], 1e-9), 1),
            "parameters": sum(n for n, _ in sizes),
            "trainable": sum(n for n, free in sizes if free),
            "data": {**described, "skipped": left},
            "environment": {"threads": torch.get_num_threads(), **environment()},
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
        }

    def _measure(self, net: nn.Module, part: str) -> tuple[float, float]:
        """Return loss and share of correct answers on the images of all processes."""
        device = self.accelerator.device
        try:
            with self.accelerator.autocast():
                found = accuracy(net, self.batches.of(part), topk=(1,), device=device)
            sums = [found["loss"] * found["count"], found["top1"] * found["count"], found["count"]]
        except UnreadableError:
            raise
        except KeyFiltersError:  # logits that are not finite; every process must learn of it
            sums = [float("nan")] * 3
        summed = self.accelerator.reduce(torch.tensor(sums, device=device), "sum").tolist()
        if not isfinite(summed[0]):
            raise self._diverged(f"answers to {part} images are not finite after step {self.step}")
        return summed[0] / summed[2], summed[1] / summed[2]

    def _diverged(self, what: str) -> KeyFiltersError:
        recipe = self.recipe
        which = f"{recipe.model.name} on {self.data.name}, {recipe.optimiser.name}"
        setting = f"lr {recipe.peak_lr:g}, precision {recipe.precision}, seed {recipe.seed}"
        mend = "lower optimiser.lr, or set optimiser.clip or schedule.warmup_epochs"
        return KeyFiltersError(f"{what} of the recipe ({which}, {setting}); {mend}")

    def _write_history(self) -> None:
        if self.out is not None and self.main:
            lines = "".join(json.dumps(row) + "\n" for row in self.history)
            write_whole(self.out / "metrics.jsonl", lines)

    def _save(self, out: Path, summary: dict[str, Any] | None) -> None:
        """Write a checkpoint; that of a finished run has a summary."""
        states = {f"best_{name}": state for name, state in self.best.items()}
        if self.ema is not None and summary is None:
            states["ema"] = state_of(self.ema.module)
        progress = {name: getattr(self, name) for name in PROGRESS}
        progress |= {"finished": summary is not None, "summary": summary}
        progress |= {"skipped": self.batches.skipped, "threads": torch.get_num_threads()}
        checkpoints.save(self.accelerator, out, self.model, states, progress)

    def _load(self, folder: Path, progress: dict[str, Any]) -> None:
        from safetensors.torch import load  # a path must be UTF-8

        for name in PROGRESS:
            setattr(self, name, progress[name])
        self.batches.skipped.update(progress["skipped"])
        self.best = {
            name: load((folder / f"best_{name}.safetensors").read_bytes())
            for name in self.best_epoch
        }
        if progress["finished"]:
            for name, net in self.nets.items():
                net.load_state_dict(self.best[name])
            return
        checkpoints.load(self.accelerator, folder, self.model)
        if self.ema is not None:
            self.ema.module.load_state_dict(load((folder / "ema.safetensors").read_bytes()))
        self.scheduler.step_update(self.step)

    def _trained(self, summary: dict[str, Any]) -> Trained:
        for net in self.nets.values():
            net.to("cpu").to(memory_format=torch.contiguous_format).eval()
        return Trained(self.model, self.nets.get("ema"), pd.DataFrame(self.history), summary)

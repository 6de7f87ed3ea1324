"""`Monitor` in the loops of others, a few lines each.

Lightning: ``Trainer(callbacks=[lightning_callback(every=100)])``. transformers:
``Trainer(callbacks=[transformers_callback(every=100)])``. accelerate: no adapter is needed,
``Monitor(model, log=accelerator.log)``; `TrackerImages` adds pictures. timm's ``train.py`` and
other loops that cannot be changed: ``Monitor(model).attach(optimizer)``. The package's own trainer:
``train(recipe, on_step=TrainMonitor(every=100))``, as ``keyfilters train`` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import NoFiltersError
from keyfilters.inspection.monitor import Monitor

__all__ = [
    "TensorBoardLog",
    "TrackerImages",
    "TrainMonitor",
    "WandbLog",
    "lightning_callback",
    "transformers_callback",
]

Images = dict[str, NDArray[np.uint8]]


class TensorBoardLog:
    """Write to a `torch.utils.tensorboard.SummaryWriter`."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Write numbers."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def images(self, drawn: Images, step: int) -> None:
        """Write pictures."""
        for name, image in drawn.items():
            self.writer.add_image(name, image, step, dataformats="HWC")


class WandbLog:
    """Write to a run of Weights & Biases, which may be offline."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Write numbers."""
        self.run.log(values, step=step)

    def images(self, drawn: Images, step: int) -> None:
        """Write pictures."""
        import wandb

        self.run.log({name: wandb.Image(image) for name, image in drawn.items()}, step=step)


class TrackerImages:
    """Write numbers and pictures to all trackers of an `accelerate.Accelerator`."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Write numbers."""
        self.accelerator.log(values, step=step)

    def images(self, drawn: Images, step: int) -> None:
        """Write pictures to the trackers that take them."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                batches = {name: image[None] for name, image in drawn.items()}
                tracker.log_images(batches, step=step, **_format(tracker))


class TrainMonitor:
    """Monitor a run of `keyfilters.training.train`, as its ``on_step``.

    It writes to the trackers of the recipe; a run that goes on goes on here too.

    Args:
        every: as of `Monitor`.
        options: further ones of `Monitor`; ``log`` takes the place of the recipe's trackers.

    Attributes:
        monitor: None before the first step, and for a model without depthwise filters.
        refused: why such a model is not monitored.
    """

    def __init__(self, every: int = 100, **options: Any) -> None:
        self.every, self.options = every, options
        self.monitor: Monitor | None = None
        self.refused = ""

    def __call__(self, step: int, model: Any, accelerator: Any) -> None:
        """Count a step; at the first call, start."""
        if self.monitor is not None:
            self.monitor.step(step)
        elif not self.refused:
            chosen: dict[str, Any] = {"log": TrackerImages(accelerator), "start": step}
            try:
                self.monitor = Monitor(model, self.every, **(chosen | self.options))
            except NoFiltersError as error:
                self.refused = str(error)


def _format(tracker: Any) -> dict[str, Any]:
    return {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}


class _Metrics:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def __call__(self, values: dict[str, float], step: int) -> None:
        self.logger.log_metrics(values, step)


def lightning_callback(every: int = 100, **options: Any) -> Any:
    """Return a `lightning.Callback` that monitors the module and writes to the trainer's loggers.

    Args:
        every: as of `Monitor`.
        options: further ones of `Monitor`; ``log`` takes the place of the trainer's loggers.
    """
    import lightning

    class MonitorFilters(lightning.Callback):
        monitor: Monitor | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero:
                logs = [_Metrics(logger) for logger in trainer.loggers]
                chosen = {"log": logs, "start": trainer.global_step} | options
                self.monitor = Monitor(module, every, **chosen)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if self.monitor is not None:
                self.monitor.step(trainer.global_step)

    return MonitorFilters()


def transformers_callback(every: int = 100, **options: Any) -> Any:
    """Return a `transformers.TrainerCallback` that monitors the model beside the trainer's logs.

    Args:
        every: as of `Monitor`.
        options: further ones of `Monitor`, such as ``log`` or ``path``.
    """
    import transformers

    class MonitorFilters(transformers.TrainerCallback):
        monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.is_world_process_zero:
                chosen = {"start": state.global_step} | options
                self.monitor = Monitor(rest["model"], every, **chosen)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if self.monitor is not None:
                self.monitor.step(state.global_step)

    return MonitorFilters()

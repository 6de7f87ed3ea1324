"""Watching the depthwise filters of a network while it trains, in any loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.depthwise import Kernel, kernels
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.files import write_whole
from keyfilters.inspection.forms import UNEXPLAINED, forms, has_forms
from keyfilters.nulls import null_units
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.seeds import child_seed
from keyfilters.threads import one_thread

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Log", "Monitor"]

STRICT = ("covariance", "phase")  # the nulls that tell structure from smoothness
SAMPLE = 256  # filters of a kernel size that are matched
PICTURED = 3  # layers whose filters are drawn: first, middle and last
SHOWN = 64  # filters of each
Array = NDArray[np.float32]


class Log(Protocol):
    """What takes the numbers; `accelerate.Accelerator.log` and `wandb.Run.log` are such."""

    def __call__(self, values: dict[str, float], step: int) -> Any:
        """Write the values of one step."""


class Monitor:
    """Measure a network's depthwise filters every so many steps.

    Of each kernel size: ``explained``, the share of a sample of filters that one idealised
    receptive field explains at r² ≥ 0.64; ``chance``, the same of null filters with their
    covariance or power spectra, the larger of the two; ``beyond``, the difference; ``sigma``, the
    median scale of those explained (taps); ``pattern/…``, shares of the kinds of fields. Of each
    layer: ``norm`` (median), ``change`` (median relative change since the last measurement) and
    ``dead`` (share of filters without a shape).

    Args:
        model: any module; its weights are read and never altered.
        every: number of steps between two measurements.
        log: called with the values and the step: one function or several, such as
            ``accelerator.log``, ``wandb.run.log`` or `keyfilters.inspection.TensorBoardLog`. One
            that has ``images`` is given pictures of the filters as well.
        path: file ``.parquet`` that holds all measurements, written anew each time.
        sample: number of filters of each kernel size that are matched.
        seed: of the sample and the nulls.
        start: number of steps done before, where a loop goes on; measurements of these steps in the
            file `path` are kept.

    Attributes:
        history: the values of each measurement, with its ``step``.

    Raises:
        NoFiltersError: the model has no depthwise filter that can be read.
        KeyFiltersError: `every` or `sample` is not positive, `path` has another ending, or holds
            something else where a loop goes on.

    >>> from torch import nn
    >>> monitor = Monitor(nn.Conv2d(64, 64, 7, groups=64), every=10)
    >>> for _ in range(20):
    ...     _ = monitor.step()  # after optimizer.step()
    >>> monitor.table["step"].tolist()
    [0, 10, 20]
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        *,
        log: Log | Callable[..., Any] | Sequence[Log | Callable[..., Any]] = (),
        path: str | os.PathLike[str] | None = None,
        sample: int = SAMPLE,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        if every < 1 or sample < 2:
            raise KeyFiltersError(
                f"expected every ≥ 1 and sample ≥ 2, got every={every} and sample={sample}"
            )
        if path is not None and Path(path).suffix != ".parquet":
            raise KeyFiltersError(f"path is {path}; measurements are written to a .parquet file")
        self.every, self.sample, self.seed = every, sample, seed
        self.path = None if path is None else Path(path)
        self.logs = [log] if callable(log) else list(log)
        # Found once: the order of the layers asks for a forward pass of a copy.
        self.kernels: list[Kernel] = [
            k for k in kernels(model) if k.depthwise and not k.unreadable and not k.owner
        ]
        if not self.kernels:
            raise NoFiltersError(
                f"{type(model).__name__} has no depthwise filters to monitor; "
                "kf.read(model) says what was seen"
            )
        self.history: list[dict[str, float]] = []
        self._last: dict[str, Array] = {}
        self._steps, self._measured = start, -1
        if start and self.path is not None and self.path.exists():
            self._go_on(self.path, start)
        if self._measured != start and start % self.every == 0:
            self.measure(start)

    def _go_on(self, path: Path, start: int) -> None:
        """Take over the measurements of the steps before, of a loop that was interrupted."""
        try:
            table = pd.read_parquet(BytesIO(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise KeyFiltersError(
                f"{path} holds no measurements ({error}); move it away, or give another path"
            ) from error
        rows = table[table["step"] <= start].to_dict("records")
        self.history = [{str(k): v for k, v in row.items() if pd.notna(v)} for row in rows]
        if rows and rows[-1]["step"] == start:
            self._last = {k.name: self._weight(k) for k in self.kernels}
            self._measured = start

    def step(self, step: int | None = None) -> dict[str, float] | None:
        """Count a step, and measure if it is a multiple of `every`; call it after the optimiser's.

        Args:
            step: number of the step; None for one more than before.

        Returns:
            The values where it measured, else None.
        """
        self._steps = self._steps + 1 if step is None else step
        if self._steps % self.every or self._steps == self._measured:
            return None
        return self.measure(self._steps)

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Call `step` after every step of an optimiser, in a loop that cannot be changed.

        Returns:
            A handle whose ``remove()`` ends this.
        """

        def after(*_: Any) -> None:
            self.step()

        return optimizer.register_step_post_hook(after)

    @property
    def table(self) -> pd.DataFrame:
        """One row a measurement."""
        return pd.DataFrame(self.history)

    @one_thread()
    @np.errstate(over="ignore", invalid="ignore")  # of a training that diverges
    def measure(self, step: int) -> dict[str, float]:
        """Measure now, and tell every log."""
        weights = {k.name: self._weight(k) for k in self.kernels}
        values: dict[str, float] = {}
        for size in sorted({w.shape[1:] for w in weights.values()}):
            values |= self._of_size(size, [w for w in weights.values() if w.shape[1:] == size])
        for name, weight in weights.items():
            values |= self._of_layer(name, weight)
        self._last, self._measured = weights, step
        self.history.append({"step": step, **values})
        self._tell(values, weights, step)
        return values

    def __repr__(self) -> str:
        filters = sum(len(self._weight(k)) for k in self.kernels)
        return (
            f"Monitor({filters:,} filters in {len(self.kernels)} layers, every {self.every} steps; "
            f"{len(self.history)} measured)"
        )

    def _weight(self, kernel: Kernel) -> Array:
        with torch.no_grad():
            weight = kernel.read().detach()[:, 0].float().cpu()
        return weight.clone().numpy()

    def _of_size(self, size: tuple[int, int], weights: list[Array]) -> dict[str, float]:
        filters = np.concatenate(weights)
        usable = np.flatnonzero(why_unusable(filters, dead_below=0.0) == "")
        if not has_forms(size) or len(usable) < 2:
            return {}
        rng = np.random.default_rng(child_seed(self.seed, "monitor", *size))
        order = rng.permutation(len(filters))  # the same filters every time
        chosen = filters[np.intersect1d(order[: self.sample], usable)]
        if len(chosen) < 2:
            return {}
        unit = centred_unit(chosen)
        drawn = [null_units(unit, size, kind, self.seed).reshape(-1, *size) for kind in STRICT]
        found = forms(np.concatenate([chosen, *drawn]))
        explained = (found["pattern"] != UNEXPLAINED).to_numpy().reshape(3, -1)
        share, chance = float(explained[0].mean()), float(explained[1:].mean(axis=1).max())
        own = found.iloc[: len(chosen)]
        prefix = f"filters/{size[0]}x{size[1]}"
        values = {
            f"{prefix}/explained": share,
            f"{prefix}/chance": chance,
            f"{prefix}/beyond": share - chance,
        }
        if explained[0].any():
            values[f"{prefix}/sigma"] = float(own["sigma"][explained[0]].median())
        for pattern, part in own["pattern"].value_counts(normalize=True).items():
            values[f"{prefix}/pattern/{str(pattern).replace(' ', '-')}"] = float(part)
        return values

    def _of_layer(self, name: str, weight: Array) -> dict[str, float]:
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        norm = np.linalg.norm(flat, axis=1)
        values = {
            f"filters/{name}/norm": float(np.median(norm)),
            f"filters/{name}/dead": float((why_unusable(weight) != "").mean()),
        }
        if name in self._last:
            before = self._last[name].reshape(len(weight), -1)
            size = np.maximum(np.linalg.norm(before, axis=1), 1e-30)
            change = np.linalg.norm(flat - before, axis=1) / size
            values[f"filters/{name}/change"] = float(np.median(change))
        return values

    def _tell(self, values: dict[str, float], weights: dict[str, Array], step: int) -> None:
        for log in self.logs:
            log(values, step=step)
        with_images = [log for log in self.logs if hasattr(log, "images")]
        if with_images:
            from keyfilters.thumbnails import grid_image

            names = list(weights)
            places = np.unique(np.linspace(0, len(names) - 1, PICTURED).round().astype(int))
            drawn = {f"filters/{names[i]}": grid_image(weights[names[i]][:SHOWN]) for i in places}
            for log in with_images:
                log.images(drawn, step=step)
        if self.path is not None:
            write_whole(self.path, self.table.to_parquet(index=False))

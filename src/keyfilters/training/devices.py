"""Devices, processes and global random generators, for one run at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.training.recipe import Recipe

__all__ = ["accelerator_for", "gathered", "own_randomness", "own_threads"]

COMPILER = "inductor"


def accelerator_for(recipe: Recipe, device: str | None) -> Any:
    """Make accelerate's view of devices and processes, for this run alone.

    Args:
        recipe: its precision, and whether to compile.
        device: as for `train`.

    Raises:
        KeyFiltersError: there is no such device, or it does not have the precision.
        MissingExtraError: accelerate is not installed.

    >>> accelerator_for(Recipe(), "cpu").device
    device(type='cpu')
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise MissingExtraError("training", "train") from error
    if device is not None and device.startswith("cuda:"):
        try:
            torch.cuda.set_device(device)
        except (RuntimeError, AssertionError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise KeyFiltersError(f"there is no {device} ({reason}); type cpu") from error
    # Its state is global and keeps the first run's device and precision. There is no public way.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=recipe.precision,
            dynamo_backend=COMPILER if recipe.compile else "no",
        )
    except (ValueError, RuntimeError) as error:
        raise KeyFiltersError(f"cannot train with precision {recipe.precision}: {error}") from error
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise KeyFiltersError("precision fp16 needs a GPU; set precision to bf16 or no")
    if device is not None and accelerator.device.type != device.partition(":")[0]:
        raise KeyFiltersError(f"there is no {device}; accelerate offers {accelerator.device}")
    return accelerator


def gathered(accelerator: Any, found: Mapping[str, str]) -> dict[str, str]:
    """Return what all processes have found; every one of them must ask."""
    from accelerate.utils import gather_object

    return dict(gather_object(list(found.items()))) if accelerator.num_processes > 1 else {**found}


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's global random generators, and that of a GPU, back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def own_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads, on whose number the last bits of sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

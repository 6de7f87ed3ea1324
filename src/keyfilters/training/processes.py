"""What a run takes from its process, and gives back; and what several processes share."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError, needing
from keyfilters.options import flat
from keyfilters.seeds import child_integer
from keyfilters.threads import is_forked
from keyfilters.training.recipe import Recipe

__all__ = [
    "combine_batchnorm",
    "gathered",
    "keep_own_buffers_",
    "make_accelerator",
    "order_seed",
    "own_accelerate",
    "own_randomness",
    "own_threads",
    "require_used",
    "synchronise_",
]

COMPILER = "inductor"


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
    """Let torch compute with so many threads: the last bits of sums depend on their number.

    In a forked process it is one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if is_forked() else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_accelerate() -> Iterator[None]:
    """Let a run have an Accelerator of its own, and give the caller's back.

    Accelerate keeps device and precision of the first one in global dictionaries, and has no public
    way to make a second.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    with needing("train", "training"):
        from accelerate import state
    kinds = (state.AcceleratorState, state.GradientState, state.PartialState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        yield
    finally:
        for kind, old in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(old)


def order_seed(recipe: Recipe) -> int:
    """Return the seed of the order of images; accelerate adds the number of the epoch."""
    return child_integer(recipe.seed, "order")


def make_accelerator(recipe: Recipe, device: str | None, out: Path | None = None) -> Any:
    """Make an Accelerator for a recipe, inside `own_accelerate`; `out` is for the trackers.

    Raises:
        KeyFiltersError: there is no such device or tracker, or no such precision on it.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    if device is not None and device.startswith("cuda:"):
        try:
            torch.cuda.set_device(device)
        except (RuntimeError, AssertionError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise KeyFiltersError(f"there is no {device} ({reason}); type cpu") from error
    trackers = list(recipe.checkpoint.log_with)
    loading = DataLoaderConfiguration(
        split_batches=True,
        use_stateful_dataloader=True,
        use_seedable_sampler=True,
        data_seed=order_seed(recipe),
    )
    try:
        with warnings.catch_warnings():  # a missing tracker is an error below
            warnings.filterwarnings("ignore", message=r".*log_with")
            accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision=recipe.precision,
                gradient_accumulation_steps=recipe.batch.accumulation,
                dataloader_config=loading,
                dynamo_backend=COMPILER if recipe.compile else "no",
                log_with=trackers or None,
                project_dir=out,
            )
    except (ValueError, RuntimeError) as error:
        asked = f"precision {recipe.precision}, trackers {', '.join(trackers) or 'none'}"
        mend = "; trackers need a folder: give --out" * bool(trackers and out is None)
        raise KeyFiltersError(f"cannot train with {asked}: {error}{mend}") from error
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise KeyFiltersError("precision fp16 needs a GPU; set precision to bf16 or no")
    if device is not None and accelerator.device.type != device.partition(":")[0]:
        raise KeyFiltersError(f"there is no {device}; accelerate offers {accelerator.device}")
    there = [str(getattr(x, "value", x)) for x in accelerator.log_with]
    if missing := [x for x in trackers if x not in there and x != "all"]:
        got = f"checkpoint.log_with: {missing[0]} is not installed, or has no folder"
        raise KeyFiltersError(f"{got}; type pip install {missing[0]}, and give --out")
    if trackers:
        accelerator.init_trackers("keyfilters", config=flat(recipe.to_dict()))
    return accelerator


def gathered(found: Mapping[str, str]) -> dict[str, str]:
    """Return what all processes have found; every one of them must ask."""
    from accelerate.utils import gather_object

    return dict(gather_object(list(found.items())))


def keep_own_buffers_(runner: nn.Module) -> None:
    """Let each process keep the statistics of what it sees; `combine_batchnorm` averages them."""
    for module in runner.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module.broadcast_buffers = False


def combine_batchnorm(nets: Iterable[nn.Module], processes: int) -> None:
    """Average running means and variances over the processes, each of which saw other images."""
    from timm.utils import distribute_bn

    if processes > 1:
        for net in nets:
            distribute_bn(net, processes, reduce=True)


def synchronise_(model: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalisations share their statistics among the processes, by timm.

    Hooks and marks of a replaced module are put on the new one.
    """
    from timm.layers import convert_sync_batchnorm

    if device.type == "cpu":
        message = "batch.sync_batchnorm needs GPUs: torch cannot share batch statistics on a CPU"
        raise KeyFiltersError(f"{message}; set it to false")
    before = dict(model.named_modules())
    made: nn.Module = convert_sync_batchnorm(model)
    for name, module in made.named_modules():
        if (old := before[name]) is not module:
            own = vars(module)
            own.update({key: x for key, x in vars(old).items() if key not in own})
            own.update({key: x for key, x in vars(old).items() if key.endswith("_hooks")})
    return made


def require_used(model: nn.Module) -> None:
    """Refuse and name parameters without a gradient, for which processes would wait in vain."""
    unused = [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None]
    if unused:
        named = ", ".join(unused[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
        mend = "call requires_grad_(False) on them before training in several processes"
        raise KeyFiltersError(f"the loss does not depend on the parameters {named}; {mend}")

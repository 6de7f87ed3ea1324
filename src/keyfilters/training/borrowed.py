"""Global state that a run borrows and gives back: generators, threads, accelerate's singletons."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["own_accelerate", "own_randomness", "own_threads"]


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
    """Let torch compute with so many threads: the last bits of sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_accelerate() -> Iterator[None]:
    """Let a run have an Accelerator of its own, and give the caller's back.

    Accelerate keeps device and precision of the first one in global dictionaries, and has no public
    way to make a second.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)

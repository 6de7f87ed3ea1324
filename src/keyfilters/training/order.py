"""Which image comes when: a function of the seed and the number of the epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

__all__ = ["epoch_order"]


def epoch_order(seed: int, epoch: int, count: int) -> tuple[Tensor, Generator]:
    """Shuffle the images of an epoch.

    Args:
        seed: of the run.
        epoch: from 0 on.
        count: number of images.

    Returns:
        The numbers of the images ``(count,)`` in their order, and a generator for whatever else is
        drawn once for each of them.

    >>> epoch_order(0, 0, 5)[0].tolist() == epoch_order(0, 0, 5)[0].tolist()
    True
    """
    words = np.random.SeedSequence((seed, epoch)).generate_state(1)
    generator = torch.Generator().manual_seed(int(words[0]))
    return torch.randperm(count, generator=generator), generator

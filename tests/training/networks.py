"""Networks and recipes that train in a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from keyfilters.training import Recipe


def network(seed: int = 0, dropout: float = 0.0, batchnorm: bool = False) -> nn.Module:
    """A depthwise-separable network for the digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.BatchNorm2d(16) if batchnorm else nn.GroupNorm(1, 16),
        nn.Conv2d(16, 32, 1),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def recipe(**changes: Any) -> Recipe:
    """Two epochs, which only `changes` make special."""
    values: dict[str, Any] = {"optimiser": {"lr": 3e-3}, "schedule": {"epochs": 2}}
    return Recipe.from_dict({**values, **changes})

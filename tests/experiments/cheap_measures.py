"""A measure of networks that takes no time, in place of that of `filter_measures`."""

from __future__ import annotations

from torch import nn


def explained(network: nn.Module, seed: int) -> dict[str, float]:
    mean = float(sum(x.abs().sum() for x in network.parameters()))
    return {"beyond": mean, "keys_beyond": 2 * mean, "r2": 0.5, "explained": 1.0, "shuffled": 0.0,
            "covariance": 0.0, "keys": 2.0, "random_keys": 1.0}  # fmt: skip

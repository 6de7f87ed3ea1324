"""A healthy network of smooth random filters, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

import keyfilters as kf
from keyfilters.bank import Layer

Spoil = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


def healthy(layers: int = 4, channels: int = 96, size: int = 5) -> kf.FilterBank:
    """Layers of smooth filters, as trained ones are."""
    made = []
    for i in range(layers):
        weight = torch.empty(channels, 1, size, size)
        kf.init.covariance_(weight, depth=0.5, generator=torch.Generator().manual_seed(i))
        filters = weight[:, 0].numpy() / weight.flatten(1).norm(dim=1).mean().item()
        made.append(Layer("net", f"conv{i}", filters, (1, 1), (1, 1), i / max(layers - 1, 1)))
    return kf.FilterBank(made)


def spoiled(bank: kf.FilterBank, spoil: Spoil, layers: slice = slice(1, 2)) -> kf.FilterBank:
    """The same bank with some layers spoiled; by default the second."""
    chosen = range(len(bank.layers))[layers]
    return kf.FilterBank(
        replace(x, weight=spoil(x.weight.copy(), np.random.default_rng(i))) if i in chosen else x
        for i, x in enumerate(bank.layers)
    )


def one_nan(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    w[3, 0, 0] = np.nan
    return w


def dead(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    w[len(w) // 8 :] = 0
    return w


def constant(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    w[::4] = 0.3
    return w


def copied(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A widened network: the second half copies the first, negated and scaled."""
    half = len(w) // 2
    w[half : 2 * half] = -0.5 * w[:half] + 0.1
    return w


def nearly_copied(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    copy = copied(w, rng)
    return copy + 0.002 * np.abs(w).mean() * rng.normal(size=w.shape).astype(np.float32)


def untrained(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.normal(0, 0.2, w.shape).astype(np.float32)


def exploded(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    w[5] *= 1e6
    return w


def vanished(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    w *= 1000
    w[::8] *= 1e-4
    return w


def tiny(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return w * np.float32(3e-4)


def huge(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return w * np.float32(1e6)


def uneven(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """One scale for all leaves one step on either side of 0 to every second filter."""
    w[::2] *= 0.004
    return w


def checkerboard(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = np.indices(w.shape[1:])
    board = np.where((x + y) % 2, -1, 1).astype(np.float32)
    norm = np.linalg.norm(w, axis=(1, 2), keepdims=True)
    return w + norm * board * rng.choice([-0.3, 0.3], (len(w), 1, 1)).astype(np.float32)


def pushed(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """All filters one tap to the side, as a wrong padding does."""
    out = np.zeros_like(w)
    out[:, 1:, 1:] = (w - w.mean(axis=(1, 2), keepdims=True))[:, :-1, :-1]
    return out


def ternary(w: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    step = np.abs(w).max()
    return (
        (np.round(w / step) * step + np.sign(w) * (np.abs(w) > 0.3 * step) * step)
        .astype(np.float32)
        .clip(-step, step)
    )


# What is wrong -> the rule that must find it, and the layers that are spoiled.
SICK: dict[str, tuple[Spoil, str, slice]] = {
    "one NaN tap": (one_nan, "non-finite", slice(1, 2)),
    "seven eighths of a layer dead": (dead, "dead-layer", slice(1, 2)),
    "a quarter of a layer constant": (constant, "constant", slice(1, 2)),
    "half of a layer copied, negated": (copied, "duplicate", slice(1, 2)),
    "half of a layer nearly copied": (nearly_copied, "near-duplicate", slice(1, 2)),
    "weights not loaded": (untrained, "untrained", slice(None)),
    "one layer reset": (untrained, "untrained-layer", slice(1, 2)),
    "one channel a million times larger": (exploded, "exploding", slice(1, 2)),
    "an eighth of a layer vanishing": (vanished, "vanishing", slice(1, 2)),
    "a layer scaled by 3e-4": (tiny, "norm-level", slice(1, 2)),
    "a layer scaled by a million": (huge, "float16-range", slice(1, 2)),
    "half of a layer 250 times smaller": (uneven, "int8-range", slice(1, 2)),
    "checkerboards added": (checkerboard, "checkerboard", slice(1, 2)),
    "filters pushed one tap aside": (pushed, "off-grid", slice(1, 2)),
    "taps rounded to three values": (ternary, "few-values", slice(1, 2)),
}

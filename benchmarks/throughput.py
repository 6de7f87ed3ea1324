"""What training by a recipe costs beside a bare loop: the same model, images and steps.

The bare loop is what one would write by hand: index, normalise, forward, backward, AdamW. Both
take turns in one process, so that the machine's other work meets both; the ratio of each round
counts. Below one minute a model on two cores. Writes results/throughput.md and .json.

    python benchmarks/throughput.py [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import pandas as pd
import torch
from common import environment, markdown, write
from timm.optim import param_groups_weight_decay
from torch.nn import functional

from keyfilters.training import Data, Recipe, load_data, make_model, train
from keyfilters.training.models import try_model

# Name, options, data, batch and steps of a round.
RUNS = {
    "test_convnext, digits 8×8": ("test_convnext", {"patch_size": 1}, "digits", {}, 64, 60),
    "convnextv2_atto, digits 32×32": (
        "convnextv2_atto", {}, "digits", {"resolution": 32}, 64, 12
    ),
}  # fmt: skip


def bare(recipe: Recipe, data: Data, device: torch.device) -> float:
    """Seconds of the steps of a recipe, written by hand."""
    model = make_model(recipe, data).to(device).train()
    groups = param_groups_weight_decay(model, 0.05)
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    images, labels = data.images.to(device), data.labels.to(device)
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (data.mean, data.std))
    size, order = recipe.batch.size, torch.randperm(len(images), device=device)
    per_epoch = len(images) // size
    try_model(model, (images[:2].float() / 255 - mean) / std, len(data.classes))  # as train does
    wait(device)
    started = time.perf_counter()
    for step in range(recipe.schedule.steps):
        chosen = order[step % per_epoch * size :][:size]
        x = (images[chosen].float() / 255 - mean) / std
        loss = functional.cross_entropy(model(x), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, (model, options, data_name, shape, size, steps) in RUNS.items():
        data = load_data(data_name, **shape)
        recipe = Recipe.from_dict(
            {
                "model": {"name": model, "options": options},
                "batch": {"size": size},
                "schedule": {"steps": steps},
            }
        )
        ratios, rates = [], []
        for round_ in range(asked.rounds + 1):
            by_hand = bare(recipe, data, torch.device(asked.device))
            summary = train(recipe, data=data, device=asked.device).summary
            if round_:  # the first warms up
                ratios.append(by_hand / summary["seconds"])
                rates.append((steps * size / by_hand, steps * size / summary["seconds"]))
        rows.append(
            {
                "model and data": name,
                "by hand, images/s": round(median(x for x, _ in rates)),
                "train, images/s": round(median(x for _, x in rates)),
                "ratio, median": round(median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
                "required": 0.97,
            }
        )
        print(rows[-1], flush=True)
    about = environment()
    if asked.device.startswith("cuda"):
        about["machine"] = torch.cuda.get_device_name()
    heading = f"{asked.rounds} rounds each after a warm-up, by turns"
    parts = {heading: markdown(pd.DataFrame(rows))}
    write("throughput", "Training by a recipe beside a bare loop", about, rows, parts)


if __name__ == "__main__":
    main()

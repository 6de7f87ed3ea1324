"""Kernel sizes, and ten times the training: how many filters follow patterns?

Trains ConvMixers of 64 channels and four blocks on CIFAR-10, with filters of 3×3, 5×5 and 7×7 for
five epochs, and asks how many filters one idealised receptive field explains, beside all four
nulls: twenty minutes on one core. ``--long`` trains one of 7×7 for fifty epochs too, and asks again
when the accuracy has stopped: an hour more. Kill it and it goes on where it was, in out/small.
Writes results/small-networks.md and .json.

    python benchmarks/small_networks.py FOLDER [--long] [--work out/small]

FOLDER holds train-*.parquet and test-*.parquet, as the Hugging Face hub has CIFAR-10.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from base_network import DRAWS, RECIPE
from common import environment, markdown, write
from natural_gpu import EXPLAINED, explained, spread

import keyfilters as kf
from keyfilters.nulls import NULLS
from keyfilters.training import Recipe, train

PER_EPOCH = 382  # steps of 128 of 49,000 images
SHORT, LONG = 5, 50
KEPT = (0, 1, 2, 5, 10, 20, 30, 40)  # epochs after which the long run keeps its filters


def measured(size: int, epochs: int, folder: str, work: Path) -> list[dict[str, Any]]:
    """Train a network, and return a row for every epoch whose filters it kept."""
    keep = [PER_EPOCH * epoch for epoch in KEPT if epoch < epochs]
    options = f"{{dim=64, depth=4, kernel_size={size}, patch_size=4}}"
    recipe = Recipe.load(
        RECIPE,
        *(f"data.name=hf:{folder}", f"model.options={options}"),
        *(f"schedule.epochs={epochs}", f"checkpoint.keep={keep}"),
    )
    out = work / f"{size}-{epochs}"
    found = train(recipe, out).summary
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    accuracy = {line["epoch"]: line["val_top1"] for line in map(json.loads, lines)}
    files = {step // PER_EPOCH: out / f"step-{step}.safetensors" for step in keep}
    rows = []
    for epoch, file in (files | {epochs: out / "model.safetensors"}).items():
        bank = kf.read(str(file))
        draws = {
            kind: [explained(kf.null_bank(bank, kind, seed), size)[0] for seed in range(DRAWS)]
            for kind in NULLS
        }
        at = {"network": f"{size}×{size}, {epochs} epochs", "step": f"epoch {epoch}"}
        reached = {"val_top1": accuracy.get(epoch), "filters": len(bank)}
        rows.append(at | reached | {"its own": explained(bank, size)} | draws)
    rows[-1] |= {"test_top1": found["test_top1"], "minutes": found["seconds"] / 60}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="CIFAR-10 as parquet files")
    parser.add_argument("--long", action="store_true", help="train one for fifty epochs too")
    parser.add_argument("--work", type=Path, default=Path("out/small"))
    given = parser.parse_args()
    chosen = [(3, SHORT), (5, SHORT), (7, SHORT)] + [(7, LONG)] * given.long
    rows = [row for one in chosen for row in measured(*one, given.folder, given.work)]
    about = environment(1)
    about["command"] = f"python benchmarks/small_networks.py FOLDER{' --long' * given.long}"
    shown = pd.DataFrame(rows).map(lambda x: spread(x) if isinstance(x, list) else x)
    heading = f"Filters that one receptive field explains at r² ≥ {EXPLAINED:.2f}, beside the nulls"
    parts = {
        f"{heading}: mean of {DRAWS} draws (least–most)": markdown(
            shown, ("val_top1", "test_top1")
        ),
        "How": "One network a line, so what is said of networks in general needs more.",
    }
    title = "ConvMixer-64/4 on CIFAR-10: kernel sizes, and longer training"
    write("small-networks", title, about, {"explained": rows}, parts)


if __name__ == "__main__":
    main()

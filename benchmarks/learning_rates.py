"""Which learning rate suits each kind of frozen filters, and does the answer depend on it?

The conditions of the experiment structure-few (a tenth of CIFAR-10, 1,000 steps), each at several
learning rates, measured on 5,000 training images that no run trains on. The test images are not
touched. An hour on one core; kill it and it goes on where it was, in out/rates. Writes
results/learning-rates.md and .json.

    KEYFILTERS_CIFAR10=FOLDER python benchmarks/learning_rates.py [--seeds 1] [--work out/rates]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import environment, markdown, write
from experiments import CIFAR, EXPERIMENTS

from keyfilters.experiments.run_parts import build_network, recipe_of
from keyfilters.experiments.structure import FILTERS, IDEALISED
from keyfilters.training import Data, load_data, train, write_weights
from keyfilters.treatment import Treatment

RATES = (0.004, 0.01, 0.02)
IMAGES = 5000  # to train on, and as many to measure


def images(seed: int) -> Data:
    """Return the training images of a seed, with others of the training set for validation."""
    whole = load_data(CIFAR)
    order = np.random.default_rng(seed).permutation(len(whole.images))
    own, held = order[:IMAGES], order[IMAGES : 2 * IMAGES]
    return replace(
        whole,
        images=whole.images[own],
        labels=whole.labels[own],
        validation_images=whole.images[held],
        validation_labels=whole.labels[held],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/rates"))
    given = parser.parse_args()
    _, shared, own = EXPERIMENTS["structure-few"]
    rows = []
    for seed in range(given.seeds):
        data = images(seed)
        ideal = given.work / f"ideal-{seed}.safetensors"
        for name in (IDEALISED, *(x for x in own["filters"] if x != IDEALISED)):
            for rate in RATES:
                changes = {"schedule": {"steps": own["steps"]}}
                options = replace(shared, lr=rate).options(changes=changes)
                network = build_network(options, data, seed)
                text = FILTERS[name].replace("@ideal", str(ideal))
                Treatment.parse(text).apply_(network, seed)
                given.work.mkdir(parents=True, exist_ok=True)
                if name == IDEALISED:
                    write_weights(ideal, network)
                recipe = recipe_of(options, seed, IMAGES)
                out = given.work / f"{name}-{rate}-{seed}"
                found = train(recipe, out, model=network, data=data).history
                top1 = 100 * float(found["val_top1"].iloc[-1])
                rows.append({"filters": name, "lr": rate, "seed": seed, "val_top1": top1})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    means = table.pivot_table("val_top1", "filters", "lr", sort=False).round(2)
    means["best"] = means.idxmax(axis=1)
    about = environment(given.seeds)
    about["command"] = "python benchmarks/learning_rates.py"
    parts = {
        f"Top-1 on {IMAGES:,} held-out training images, %: mean of the seeds": markdown(
            means.reset_index()
        ),
        "How": "A tenth of CIFAR-10, 1,000 steps, the network of structure-few; that experiment "
        f"trained all conditions at {shared.lr:g}.",
    }
    data = {"runs": rows, "means": means.reset_index().to_dict("records")}
    title = "Learning rates of frozen and learned filters on a tenth of CIFAR-10"
    write("learning-rates", title, about, data, parts)


if __name__ == "__main__":
    main()

"""What a network trained on CIFAR-10 keeps when its filters are made of a few keys.

No training: every filter becomes the nearest a · key + b, batch normalisation is recalibrated on
training images, and the test images are classified. Beside keys learned from the network's own
filters stand keys learned in the same way from their nulls, keys of another network, idealised
keys and Gaussian noise of *their* covariance, and random keys. Ten minutes on two cores. Writes
results/natural-replacement.md and .json.

    python benchmarks/natural_replacement.py RUN FOLDER [--seeds 5]

RUN is the folder that base_network.py left (out/base); FOLDER holds CIFAR-10 as parquet files.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench.filters import DETECTOR
from common import environment, markdown, write
from pictures import by_picture, interval

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.surgery.recalibrate import Recalibration
from keyfilters.training import load_data, load_trained, logits, normalise

SIZE = 7
CHOOSING = 2000  # training images that recalibrate
OWN, PUBLISHED, IDEALIZED = "lines of its filters", "published B", "own idealised model"
LIKE_OWN = tuple(f"lines of {x} noise" for x in ("covariance", "phase"))
LIKE_PUBLISHED = "noise of published B's covariance"
OTHER, RANDOM = "lines of a text detector", "random"
COUNTS = {
    **dict.fromkeys((OWN, *LIKE_OWN, RANDOM), (4, 8, 16, 32)),
    OTHER: (8, 32),
    PUBLISHED: (8,),
    LIKE_PUBLISHED: (8,),
    IDEALIZED: (1,),
}
FIXED = (PUBLISHED, IDEALIZED)  # the same with every seed
PAIRS = (*((OWN, x) for x in (*LIKE_OWN, OTHER, RANDOM)), (PUBLISHED, LIKE_PUBLISHED),
         (PUBLISHED, RANDOM))  # fmt: skip


def bank_of(keys: kf.KeySet) -> kf.FilterBank:
    """Return keys as the filters of one layer."""
    filters = keys.filters.astype(np.float32)
    return kf.FilterBank([Layer("keys", "keys", filters, None, None, 0.0)])


def key_sets(bank: kf.FilterBank) -> dict[str, Callable[[int, int], Any]]:
    """Return what makes the keys of each name, from their number and a seed."""
    published = kf.KeySet.published("lindeberg2026-B", SIZE)
    other = kf.read(DETECTOR)

    def named(kind: str, of: Callable[[int], kf.FilterBank]) -> Callable[[int, int], kf.KeySet]:
        return lambda n, seed: kf.KeySet.named(f"{kind}:{n}", SIZE, seed, bank=of(seed))

    return {
        OWN: named("lines", lambda seed: bank),
        LIKE_OWN[0]: named("lines", lambda seed: kf.null_bank(bank, "covariance", seed)),
        LIKE_OWN[1]: named("lines", lambda seed: kf.null_bank(bank, "phase", seed)),
        OTHER: named("lines", lambda seed: other),
        RANDOM: lambda n, seed: kf.KeySet.random(n, SIZE, seed),
        PUBLISHED: lambda n, seed: published,
        LIKE_PUBLISHED: named("covariance", lambda seed: bank_of(published)),
        IDEALIZED: lambda n, seed: "idealized",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a trained network")
    parser.add_argument("folder", help="CIFAR-10 as parquet files")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    original, data = load_trained(given.run), load_data(f"hf:{given.folder}")
    original = original.to(memory_format=torch.channels_last)
    choosing, measuring = (
        normalise(x, data.mean, data.std).contiguous(memory_format=torch.channels_last)
        for x in (data.images[:CHOOSING], data.test_images)
    )
    recalibration = Recalibration(original, choosing, batch_size=100)

    def right(model: torch.nn.Module) -> str:
        answers = logits(model, measuring, batch_size=100).argmax(1)
        return "".join(map(str, (answers == data.test_labels).int().tolist()))

    before = right(original)
    rows = []
    for name, make in key_sets(kf.read(original)).items():
        for count in COUNTS[name]:
            for seed in range(1 if name in FIXED else given.seeds):
                model = copy.deepcopy(original)
                kf.replace_filters_(model, make(count, seed))
                recalibration.apply_(model)
                rows.append({"keys": name, "number": count, "seed": seed, "same": right(model)})
                top1 = 100 * np.mean([int(x) for x in rows[-1]["same"]])
                print(f"{name}, {count}, seed {seed}: {top1:.1f} %", flush=True)
    runs = pd.DataFrame(rows)
    sets = {key: by_picture(own) for key, own in runs.groupby(["keys", "number"], sort=False)}
    conditions = []
    for (name, count), values in sets.items():
        own = runs[(runs["keys"] == name) & (runs["number"] == count)]
        each = [by_picture(own[own["seed"] == x]).mean() for x in own["seed"]]
        spread = f"{min(each):.1f}–{max(each):.1f}" if len(each) > 1 else ""
        row = {"keys": name, "number": count, "seeds": len(each), "top1": values.mean()}
        conditions.append({**row, "right, %": interval(values), "least–most of seeds": spread})
    differences = [
        {"keys": one, "minus": other, "number": count,
         "estimate": (sets[one, count] - sets[other, count]).mean(),
         "points": interval(sets[one, count] - sets[other, count])}
        for one, other in PAIRS
        for count in COUNTS[one]
        if (one, count) in sets and (other, count) in sets
    ]  # fmt: skip
    found = {"before": 100 * before.count("1") / len(before), "conditions": conditions,
             "differences": differences}  # fmt: skip
    heading = f"Test images right, of {len(before):,}; {found['before']:.1f} % before"
    parts = {
        f"{heading} (95 % interval over images)": markdown(
            pd.DataFrame(conditions).drop(columns="top1")
        ),
        "Differences, points: paired by image (95 % interval over images)": markdown(
            pd.DataFrame(differences).drop(columns="estimate")
        ),
        "How": f"Batch normalisation is recalibrated on {CHOOSING:,} training images; nothing is "
        "trained. One network: the intervals say nothing of other networks.",
    }
    about = environment(given.seeds)
    about["command"] = f"python benchmarks/natural_replacement.py RUN FOLDER --seeds {given.seeds}"
    write("natural-replacement", "A network of CIFAR-10 on a few keys", about, found, parts)


if __name__ == "__main__":
    main()

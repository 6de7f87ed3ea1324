r"""What networks trained on CIFAR-10 keep when their filters are made of a few keys.

No training: every filter becomes the nearest a · key + b, batch normalisation is recalibrated on
training images, and the test images are classified. Keys learned from the network of another seed
stand beside keys learned in the same way from the nulls of that network, so that all of them are
held out; beside them stand keys fitted to the very filters, keys of a text detector, idealised
keys and Gaussian noise of *their* covariance, and random keys. Twenty minutes on two cores. Writes
results/natural-replacement.md and .json.

    python benchmarks/natural_replacement.py RUN RUN [RUN …]

RUN is a folder that `keyfilters train` wrote, of a network of 7×7 filters; runs differ by their
seed only. Those that are recorded take five minutes each on one core:

    for seed in 0 1 2 3 4; do keyfilters train recipes/cifar10-convmixer.toml \
        --set data.name=hf:FOLDER --set seed=$seed --set schedule.epochs=5 \
        --set 'model.options={dim=64, depth=4, kernel_size=7, patch_size=4}' --out out/small-$seed
    done
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench.filters import DETECTOR
from common import environment, markdown, write
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.surgery.recalibrate import Recalibration
from keyfilters.training import Recipe, load_data, load_trained, logits, normalise

SIZE = 7
RECALIBRATING = 2000  # training images
PUBLISHED, IDEALIZED = "published B", "own idealised model"
LIKE_PUBLISHED = "noise of published B's covariance"
LEARNED = "lines of another seed's network"
NOISE = tuple(f"lines of its {kind} noise" for kind in ("covariance", "phase"))
FITTED, DETECTED = "lines of the very filters", "lines of a text detector"
RANDOM, WHOLE = "random", "its own filters"
COUNTS = {  # keys -> their numbers
    WHOLE: (0,),
    **dict.fromkeys((LEARNED, *NOISE, FITTED, RANDOM), (4, 8, 16, 32)),
    DETECTED: (8, 32),
    PUBLISHED: (8,),
    LIKE_PUBLISHED: (8,),
    IDEALIZED: (1,),
}
PAIRS = (*((LEARNED, x) for x in (*NOISE, DETECTED, RANDOM)), (PUBLISHED, LIKE_PUBLISHED),
         (PUBLISHED, RANDOM), (IDEALIZED, WHOLE))  # fmt: skip
MakeKeys = Callable[[int], Any]  # of their number


def key_sets(own: kf.FilterBank, other: kf.FilterBank, seed: int) -> dict[str, MakeKeys]:
    """Return what makes the keys of each name, for a network and the network of another seed."""
    published = kf.KeySet.published("lindeberg2026-B", SIZE)
    filters = published.filters.astype(np.float32)
    of_keys = kf.FilterBank([Layer("keys", "keys", filters, None, None, 0.0)])

    def named(kind: str, bank: kf.FilterBank) -> MakeKeys:
        return lambda n: kf.KeySet.named(f"{kind}:{n}", SIZE, seed, bank=bank)

    return {
        LEARNED: named("lines", other),
        NOISE[0]: named("lines", kf.null_bank(other, "covariance", seed)),
        NOISE[1]: named("lines", kf.null_bank(other, "phase", seed)),
        FITTED: named("lines", own),
        DETECTED: named("lines", kf.read(DETECTOR)),
        RANDOM: lambda n: kf.KeySet.random(n, SIZE, seed),
        PUBLISHED: lambda n: published,
        LIKE_PUBLISHED: named("covariance", of_keys),
        IDEALIZED: lambda n: "idealized",
    }


def measured(run: Path, other: Path, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield a row for every replacement of a network's filters: its share of right images, %."""
    data = load_data(**recipe.to_dict()["data"])
    original = load_trained(run).to(memory_format=torch.channels_last)
    recalibrating, measuring = (
        normalise(x, data.mean, data.std).contiguous(memory_format=torch.channels_last)
        for x in (data.images[:RECALIBRATING], data.test_images)
    )
    recalibration = Recalibration(original, recalibrating, batch_size=100)

    def top1(model: torch.nn.Module) -> float:
        right = logits(model, measuring, batch_size=100).argmax(1) == data.test_labels
        return 100 * right.double().mean().item()

    yield {"keys": WHOLE, "number": 0, "top1": top1(original)}
    banks = kf.read(original), kf.read(load_trained(other))
    for name, make in key_sets(*banks, recipe.seed).items():
        for count in COUNTS[name]:
            model = copy.deepcopy(original)
            kf.replace_filters_(model, make(count))
            recalibration.apply_(model)
            found = {"keys": name, "number": count, "top1": top1(model)}
            print(f"{run}: {found}", flush=True)
            yield found


def require_alike(recipes: Sequence[Recipe]) -> None:
    """End unless recipes differ by their seed, and by it only."""
    if len({recipe.seed for recipe in recipes}) < len(recipes) or len(recipes) < 2:
        raise SystemExit("two runs or more are expected, each of another seed")
    if any(replace(recipe, seed=0) != replace(recipes[0], seed=0) for recipe in recipes):
        raise SystemExit("the runs differ by more than their seed")


def conditions(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Sum up the runs for every kind of keys and number of them."""
    return [
        {"keys": keys, "number": number, "mean": top1.mean(), "least": top1.min(),
         "most": top1.max(), "each": top1.tolist()}
        for (keys, number), top1 in rows.groupby(["keys", "number"], sort=False)["top1"]
    ]  # fmt: skip


def differences(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare kinds of keys run by run, with p-values corrected by Holm's method."""
    held = rows.pivot(index="run", columns=["keys", "number"], values="top1")
    found, p = [], []
    for one, other in PAIRS:
        for number in COUNTS[one]:
            beside = 0 if other == WHOLE else number
            if beside in COUNTS[other]:
                test = DescrStatsW(held[one, number] - held[other, beside])
                low, high = test.tconfint_mean()
                row = {"keys": one, "minus": other, "number": number}
                found.append({**row, "mean": test.mean, "low": low, "high": high})
                p.append(test.ttest_mean()[1])
    corrected = multipletests(p, method="holm")[1]
    return [{**row, "p_holm": x} for row, x in zip(found, corrected, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trained networks")
    runs = parser.parse_args().runs
    recipes = [Recipe.load(run / "recipe.toml") for run in runs]
    require_alike(recipes)
    rows = pd.DataFrame(
        {"run": i, **row}
        for i, (run, recipe) in enumerate(zip(runs, recipes, strict=True))
        for row in measured(run, runs[i - 1], recipe)
    )
    found = {"network": f"{recipes[0].model.name} {recipes[0].model.options}",
             "conditions": conditions(rows), "differences": differences(rows)}  # fmt: skip
    about = environment(len(runs))
    about["command"] = "python benchmarks/natural_replacement.py RUN …"
    shown = pd.DataFrame(found["conditions"]).drop(columns="each")
    parts = {
        f"Test images right, %, of {len(runs)} networks, {found['network']}": markdown(shown),
        "Differences, points": markdown(pd.DataFrame(found["differences"])),
        "How": f"Batch normalisation is recalibrated on {RECALIBRATING:,} training images; nothing "
        "is trained. Keys are drawn or learned once for each network; the nulls are those of the "
        "other seed's network. Low and high: 95 % interval over the networks (t); p: corrected by "
        "Holm's method for all differences.",
    }
    write("natural-replacement", "Networks of CIFAR-10 on a few keys", about, found, parts)


if __name__ == "__main__":
    main()

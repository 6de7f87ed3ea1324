r"""What networks trained on CIFAR-10 keep when their filters are made of a few keys.

No training: every filter becomes the nearest a · key + b, batch normalisation is recalibrated on
training images, and the test images are classified. Beside keys learned from a network's own
filters stand keys learned in the same way from their nulls, keys of another network, idealised
keys and Gaussian noise of *their* covariance, and random keys. Half an hour on two cores. Writes
results/natural-replacement.md and .json.

    python benchmarks/natural_replacement.py RUN [RUN …]

RUN is a folder that `keyfilters train` wrote, of a ConvMixer of 7×7 filters. Runs that differ only
by their seed are compared with intervals over the networks, and keys are drawn once for each. For
a single network keys are drawn three times, and nothing is claimed beyond it. The runs that are
recorded, five small networks (five minutes each on one core) and the base network:

    for seed in 0 1 2 3 4; do keyfilters train recipes/cifar10-convmixer.toml \
        --set data.name=hf:FOLDER --set seed=$seed --set schedule.epochs=5 \
        --set 'model.options={dim=64, depth=4, kernel_size=7, patch_size=4}' --out out/small-$seed
    done
    python benchmarks/base_network.py FOLDER
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
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
DRAWS = 3  # of the keys of a single network
OWN, PUBLISHED, IDEALIZED = "lines of its filters", "published B", "own idealised model"
LIKE_OWN = tuple(f"lines of {x} noise" for x in ("covariance", "phase"))
LIKE_PUBLISHED = "noise of published B's covariance"
OTHER, RANDOM, WHOLE = "lines of a text detector", "random", "its own filters"
COUNTS = {
    WHOLE: (0,),
    **dict.fromkeys((OWN, *LIKE_OWN, RANDOM), (4, 8, 16, 32)),
    OTHER: (8, 32),
    PUBLISHED: (8,),
    LIKE_PUBLISHED: (8,),
    IDEALIZED: (1,),
}
DRAWN = {OWN, *LIKE_OWN, LIKE_PUBLISHED, OTHER, RANDOM}  # the keys that a seed changes
PAIRS = (*((OWN, x) for x in (*LIKE_OWN, OTHER, RANDOM)), (PUBLISHED, LIKE_PUBLISHED),
         (PUBLISHED, RANDOM), (IDEALIZED, WHOLE))  # fmt: skip
MakeKeys = Callable[[int, int], Any]  # of their number and a seed


def key_sets(bank: kf.FilterBank) -> dict[str, MakeKeys]:
    """Return what makes the keys of each name."""
    published, other = kf.KeySet.published("lindeberg2026-B", SIZE), kf.read(DETECTOR)
    filters = published.filters.astype(np.float32)
    of_keys = kf.FilterBank([Layer("keys", "keys", filters, None, None, 0.0)])

    def named(kind: str, of: Callable[[int], kf.FilterBank]) -> MakeKeys:
        return lambda n, seed: kf.KeySet.named(f"{kind}:{n}", SIZE, seed, bank=of(seed))

    return {
        OWN: named("lines", lambda seed: bank),
        LIKE_OWN[0]: named("lines", lambda seed: kf.null_bank(bank, "covariance", seed)),
        LIKE_OWN[1]: named("lines", lambda seed: kf.null_bank(bank, "phase", seed)),
        OTHER: named("lines", lambda seed: other),
        RANDOM: lambda n, seed: kf.KeySet.random(n, SIZE, seed),
        PUBLISHED: lambda n, seed: published,
        LIKE_PUBLISHED: named("covariance", lambda seed: of_keys),
        IDEALIZED: lambda n, seed: "idealized",
    }


def measured(run: Path, recipe: Recipe, seeds: range) -> Iterator[dict[str, Any]]:
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
        return 100 * right.float().mean().item()

    yield {"keys": WHOLE, "number": 0, "draw": 0, "top1": top1(original)}
    for name, make in key_sets(kf.read(original)).items():
        for count in COUNTS[name]:
            for seed in seeds if name in DRAWN else seeds[:1]:
                model = copy.deepcopy(original)
                kf.replace_filters_(model, make(count, seed))
                recalibration.apply_(model)
                found = {"keys": name, "number": count, "draw": seed, "top1": top1(model)}
                print(f"{run}: {found}", flush=True)
                yield found


def network_name(recipe: Recipe) -> str:
    options = recipe.model.options
    return f"ConvMixer-{options['dim']}/{options['depth']}"


def alike(recipes: dict[Path, Recipe]) -> dict[str, list[Path]]:
    """Return the runs of every network; those of one differ by their seed only."""
    networks: dict[str, list[Path]] = {}
    for run, recipe in recipes.items():
        others = networks.setdefault(network_name(recipe), [])
        others.append(run)
        if replace(recipe, seed=0) != replace(recipes[others[0]], seed=0):
            raise SystemExit(f"{others[0]} and {run} differ by more than their seed")
        if [recipes[x].seed for x in others].count(recipe.seed) > 1:
            raise SystemExit(f"{run} has the same seed as another run of {network_name(recipe)}")
    return networks


def condition(of: pd.DataFrame) -> dict[str, Any]:
    """Sum up the rows of one network, one kind of keys and one number."""
    top1 = of["top1"]
    return {"mean": top1.mean(), "least": top1.min(), "most": top1.max(), "each": top1.tolist()}


def differences(of: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare kinds of keys over the runs of one network, with p-values corrected by Holm."""
    held = of.pivot(index="run", columns=["keys", "number"], values="top1")
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
    given = parser.parse_args()
    recipes = {run: Recipe.load(run / "recipe.toml") for run in given.runs}
    conditions, compared = [], []
    for network, runs in alike(recipes).items():
        draws = DRAWS if len(runs) == 1 else 1
        rows = pd.DataFrame(
            {"run": i, **row}
            for i, run in enumerate(runs)
            for row in measured(run, recipes[run], range(i, i + draws))
        )
        who = {"network": network, "networks": len(runs)}
        for (keys, number), own in rows.groupby(["keys", "number"], sort=False):
            conditions.append({**who, "keys": keys, "number": number, **condition(own)})
        if len(runs) > 1:
            compared += [{**who, **row} for row in differences(rows)]
    about = environment()
    about["command"] = "python benchmarks/natural_replacement.py RUN …"
    shown = pd.DataFrame(conditions).drop(columns="each")
    parts = {
        "Test images right, %": markdown(shown),
        "Differences, points": markdown(pd.DataFrame(compared)),
        "How": f"Batch normalisation is recalibrated on {RECALIBRATING:,} training images; nothing "
        "is trained. Least and most: of the networks, whose keys are drawn once each, or of "
        f"{DRAWS} draws of the keys of a single network. Low and high: 95 % interval over the "
        "networks (t); p: corrected by Holm's method for all differences. The nulls are those of "
        "each network's own filters.",
    }
    found = {"conditions": conditions, "differences": compared}
    write("natural-replacement", "Networks of CIFAR-10 on a few keys", about, found, parts)


if __name__ == "__main__":
    main()

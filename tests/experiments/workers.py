"""What the runs of the tests do; spawned processes import it, so that it must import little."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def measure(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Return numbers that depend on the request only, and note in the folder that it was done."""
    with (folder / "calls.txt").open("a") as file:
        file.write("called\n")
    top1 = options.get("gain", 0.0) + float(np.random.default_rng(seed).normal())
    found = {"top1": np.float64(top1), "note": "fine", "curve": np.array([top1 / 2, top1])}
    if "places" in options:
        found["places"] = list(range(1, 1 + options["places"]))
    return found


def steps(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Return lists over two steps, as those that the options give."""
    return {"steps": [0, 10], "words": "no list", **options}


def misbehave(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Fail at the first attempt, or always, in the manner that the options name."""
    again = (folder / "calls.txt").exists()
    found = measure(options, seed, folder)
    if again and not options.get("always"):
        return found
    match options.get("manner"):
        case "raise":
            raise RuntimeError("the loss\nis not finite")
        case "exit":
            sys.exit(3)
        case "die":
            os._exit(7)
        case "vanish":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "reserved":
            return {"seed": 1}
        case "object":
            return {"top1": object()}
    return found


def surroundings(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    import torch

    policy = os.environ.get("OMP_WAIT_POLICY", "")
    method = multiprocessing.get_start_method()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return {
        "threads": torch.get_num_threads(),
        "policy": policy,
        "method": method,
        "gpus": gpus,
    }


def hold(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Seed 0 is quick; the others take an hour the first time."""
    again = (folder / "calls.txt").exists()
    found = measure(options, seed, folder)
    if seed and not again:
        time.sleep(3600)
    return found


def linger(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Wait for the file that the options name, in a process whose number lies in the folder."""
    found = measure(options, seed, folder)
    (folder / "process.new").write_text(str(os.getpid()))
    (folder / "process.new").replace(folder / "process.txt")
    while not Path(options["until"]).exists():
        time.sleep(0.05)
    return found


def borrow(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Count what a source has noted in its folder."""
    noted = Path(options["sources"]["lender"], "calls.txt").read_text()
    return {"top1": float(len(noted.splitlines()))}

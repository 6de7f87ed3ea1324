"""Reading a model, beside loading it with its own library; in this process and from the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import keyfilters as kf
from keyfilters.sources import package_files

from . import processes
from .filters import LITE0
from .runner import Arm, Comparison

HELP = "python -c pass"
BARE = "torch.load"
LARGE = "safetensors.torch.load_file"


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield the reading of a checkpoint, of a large file, and the commands."""
    file = str(package_files(LITE0.removeprefix("package:"))[0])
    ours = Arm("kf.read", lambda: _forget(kf.read(file)))
    bare = Arm(f"{BARE}, and pick by shape", lambda: _pick(torch.load(file, weights_only=True)))
    yield Comparison("reading", "EfficientNet-Lite0, a checkpoint of torch", "model", ours, (bare,))
    with TemporaryDirectory() as folder:
        large = str(Path(folder) / "large.safetensors")
        size = write_large(large, scale)
        yield Comparison(
            "reading",
            f"{size:.2g} GB of safetensors, 1 % of it depthwise",
            "file",
            Arm("kf.read", lambda: _forget(kf.read(large))),
            (
                Arm(f"{LARGE}, and pick by shape", lambda: _pick(load_file(large))),
                Arm("safe_open, tensor by tensor, those of the shape", lambda: _open(large)),
            ),
            most=2.0,
        )
        scripts = (
            f"import keyfilters as kf; kf.read({large!r})",
            f"import torch; from safetensors.torch import load_file; load_file({large!r})",
        )
        yield Comparison(
            "reading",
            f"{size:.2g} GB of safetensors, in a process of its own",
            "process",
            *(_process("kf.read", scripts[0]), (_process(LARGE, scripts[1]),)),
            quality="peak memory, GB",
            rounds=3,
        )
    yield _command("keyfilters --help", ["--help"], ("-c", "pass"), HELP, most=0.5)
    script = f"import torch, timm; torch.load({file!r}, weights_only=True)"
    with TemporaryDirectory() as folder:
        verb = ["read", LITE0, "--out", folder]
        name = "keyfilters read (Lite0)"
        yield _command(name, verb, ("-c", script), f"import torch, timm; {BARE}")


def write_large(path: str, scale: float) -> float:
    """Write a file of which 1 % is depthwise; return its size in GB: 1 at full scale."""
    channels = max(16, round(1000 * scale**0.5))
    tensors = {}
    for i in range(256):
        tensors[f"blocks.{i}.pointwise.weight"] = torch.rand(channels, channels, 1, 1)
        tensors[f"blocks.{i}.depthwise.weight"] = torch.rand(max(8, channels // 5), 1, 7, 7)
    save_file(tensors, path)
    return Path(path).stat().st_size / 1e9


def _pick(tensors: dict[str, torch.Tensor]) -> None:
    [w.numpy() for w in tensors.values() if w.ndim == 4 and w.shape[1] == 1 and w.shape[2] > 1]


def _open(path: str) -> None:
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            shape = file.get_slice(name).get_shape()
            if len(shape) == 4 and shape[1] == 1 and shape[2] > 1:
                np.asarray(file.get_tensor(name))


def _process(name: str, script: str) -> Arm:
    return Arm(name, lambda: processes.python("-c", script).memory)


def _command(
    name: str, verb: list[str], beside: tuple[str, ...], rival: str, most: float | None = None
) -> Comparison:
    def run(command: Callable[[], processes.Usage]) -> Callable[[], None]:
        return lambda: _forget(command())

    return Comparison(
        "reading",
        "the command, from the shell",
        "process",
        Arm(name, run(lambda: processes.keyfilters(verb))),
        (Arm(rival, run(lambda: processes.python(*beside))),),
        most=most,
        rounds=5,
    )


def _forget(_: object) -> None:
    """Drop a result before the clock is read."""

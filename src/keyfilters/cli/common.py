"""What the verbs share: options, progress, and writing a folder all at once."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyfilters.bank import FilterBank
    from keyfilters.experiments.executors import Executor

__all__ = [
    "Address",
    "CpusPerRun",
    "Device",
    "ExecutorName",
    "GpusPerRun",
    "Layers",
    "Out",
    "Seed",
    "Sources",
    "check_device",
    "check_out",
    "command_line",
    "executor_of",
    "folder_at_once",
    "layer_names",
    "progress_bar",
    "read_bank",
]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="timm:NAME, timm:NAME?pretrained=false, hf-hub:ORG/REPO, package:DIST, "
        "package:DIST/FILE, a .safetensors, .pth, .pt, .onnx or .tflite file, or a folder of them.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Address = Annotated[
    str,
    typer.Option(
        help="Ray cluster: auto or HOST:PORT (this machine is in it), ray://HOST:PORT (it is not).",
        show_default="a Ray on this machine only",
    ),
]
CpusPerRun = Annotated[float, typer.Option(help="CPUs of a run on a cluster.")]
GpusPerRun = Annotated[float, typer.Option(help="GPUs of a run on a cluster, such as 0.5.")]
ExecutorName = Annotated[
    str,
    typer.Option(
        help="Read the sources at once, each in a process of its own: local (of this machine) or "
        "ray (of a cluster). What was read stays, in OUT/reading.",
        show_default="one after another",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Names of layers or patterns such as stages.2.*, with commas; default all.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default=False)]


def check_device(device: str) -> None:
    """Refuse a device that torch does not have, before any work starts.

    Raises:
        KeyFiltersError: the name is unknown or there is no such device.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise KeyFiltersError(f"cannot compute on {device!r}: {reason}") from error


@contextmanager
def progress_bar(total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error; yield a function to call with each step's name.

    Where steps are passed over, it takes the number of those done and of all of them as well.

    Args:
        total: number of steps, if known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), BarColumn(24), TimeElapsedColumn(), Remaining(), text)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total)
        started = False

        def step(name: str, done: int | None = None, total: int | None = None) -> None:
            nonlocal started
            one = 1 if started and done is None else None
            progress.update(task, description=name, completed=done, total=total, advance=one)
            started = True

        yield step


def executor_of(name: str, address: str, cpus: float) -> Executor | None:
    """Return what --executor names, None where it is not given.

    Raises:
        KeyFiltersError: an unknown name, or options of a cluster without one.
    """
    from keyfilters.experiments.ray_cluster import executor_from

    chosen = executor_from(name or "local", address, cpus)
    return chosen if name else None


def read_bank(
    source: list[str],
    out: Path | None,
    seed: int,
    executor: Executor | None,
    step: Callable[[str], None],
) -> FilterBank:
    """Read sources, on an executor where there is one.

    Raises:
        KeyFiltersError: an executor without --out; else as `keyfilters.read`.
    """
    if executor is None:
        from keyfilters.sources import read

        return read(*source, seed=seed, progress=lambda name: step(f"reading {name}"))
    from keyfilters.experiments.reading import read_sources

    if out is None:
        raise KeyFiltersError("--executor keeps what was read in OUT/reading; type also: --out OUT")
    return read_sources(source, out / "reading", seed=seed, executor=executor, progress=step)


def layer_names(layers: str | None) -> list[str] | None:
    """Return what --layers names, None for all."""
    return None if layers is None else [name.strip() for name in layers.split(",")]


def command_line() -> str:
    """Return what was typed, to stand beside what came of it."""
    return shlex.join(["keyfilters", *sys.argv[1:]])


def check_out(out: Path | None) -> None:
    """Refuse a folder that is a file, before any work starts.

    Raises:
        KeyFiltersError: `out` is a file.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise KeyFiltersError(f"--out {out} is a file; give a folder")


@contextmanager
def folder_at_once(out: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move to `out` only if nothing fails.

    Raises:
        KeyFiltersError: `out` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            yield Path(unfinished)
            for file in sorted(Path(unfinished).iterdir()):
                file.replace(out / file.name)
    except OSError as error:
        raise KeyFiltersError(f"cannot write to {out}: {error.strerror or error}") from error

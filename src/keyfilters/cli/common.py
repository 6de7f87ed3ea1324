"""What the verbs share: options, progress, and writing a folder all at once."""

from __future__ import annotations

import _thread
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.tables import cell
from keyfilters.errors import KeyFiltersError, refuse_unwritten
from keyfilters.files import hold_folder, move_whole, unfinished_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from keyfilters.bank import FilterBank
    from keyfilters.experiments.executors import Executor

__all__ = [
    "Address",
    "CpusPerRun",
    "Device",
    "ExecutorName",
    "GpusPerRun",
    "HiddenDevice",
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
    "one_command",
    "progress_bar",
    "read_bank",
    "typed",
]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="A model file (.pth, .safetensors, .onnx, .tflite, .keras and more), a folder, a "
        "pattern or an address; or timm:NAME, timm:NAME?pretrained=false, hf-hub:ORG/REPO, "
        "package:DIST or package:DIST/FILE.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
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


def check_device(device: str) -> str:
    """Refuse a device that torch does not have, before any work starts, and return it.

    Raises:
        KeyFiltersError: the name is unknown or there is no such device.
    """
    if device == "cpu":
        return device
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise KeyFiltersError(f"cannot compute on {device!r}: {reason}") from error
    return device


Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", callback=check_device)
]
HiddenDevice = Annotated[str, typer.Option(hidden=True, callback=check_device)]
HELD: ContextVar[ExitStack | None] = ContextVar("HELD", default=None)


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

    text = TextColumn("{task.description}", markup=False)
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
            progress.update(
                task, description=cell(name).plain, completed=done, total=total, advance=one
            )
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


def typed(context: typer.Context, *options: str) -> list[str]:
    """Return which of these options of the running verb stand on its command line."""
    sources = {x: context.get_parameter_source(x) for x in options}
    given = [x for x, source in sources.items() if source and source.name == "COMMANDLINE"]
    return [f"--{x.replace('_', '-')}" for x in given]


def command_line() -> str:
    """Return what was typed, to stand beside what came of it."""
    return shlex.join(["keyfilters", *sys.argv[1:]])


def check_out(out: Path | None) -> None:
    """Take a folder for this command, before any work starts; it is given back at the end.

    Of the processes that torchrun starts, the first one takes it.

    Raises:
        KeyFiltersError: `out` is a file, cannot be written to, or another command has it.
    """
    if out is None:
        return
    with suppress(OSError):  # hold_folder says what is wrong
        if out.exists() and not out.is_dir():
            raise KeyFiltersError(f"--out {out} is a file; give a folder")
    held = HELD.get()
    if held is not None and os.environ.get("RANK", "0") == "0":
        held.enter_context(hold_folder(out))


@contextmanager
def one_command() -> Iterator[None]:
    """Give back at the end, also at SIGTERM, what a command takes: its folder and its processes.

    An interrupt that comes while Python runs a finaliser is lost there; it is sent again.
    """
    got: list[signal.Signals] = []

    def end(number: int, frame: FrameType | None) -> None:
        got.append(signal.Signals(number))
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def again(lost: sys.UnraisableHookArgs) -> None:
        if got and isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
            later = threading.Timer(0.02, _thread.interrupt_main, [got[-1]])  # not in this hook
            later.daemon = True
            later.start()
        else:
            before(lost)

    before = sys.unraisablehook
    with ExitStack() as held:
        token = HELD.set(held)
        held.callback(HELD.reset, token)
        with suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    held.callback(signal.signal, number, signal.signal(number, end))
            sys.unraisablehook = again
            held.callback(setattr, sys, "unraisablehook", before)
        try:
            yield
        except Exception as error:
            if got:  # code in C, such as that of matplotlib, puts an error of its own in its place
                raise SystemExit(128 + got[-1]) from error
            raise


@contextmanager
def folder_at_once(out: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move to `out` only if nothing fails.

    Files that cannot be moved leave those that were there. The unfinished folder is there until the
    last file has moved: where a process is killed, it marks that files of two commands may lie
    beside each other.

    Raises:
        KeyFiltersError: `out` cannot be written to.
    """
    with refuse_unwritten(out), unfinished_folder(out) as unfinished:
        yield unfinished
        move_whole(sorted(unfinished.iterdir()), out)

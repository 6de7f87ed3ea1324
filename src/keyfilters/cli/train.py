"""``keyfilters train``: train a model by a recipe, and go on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyfilters.cli.common import Out, check_device, check_out, progress_bar
from keyfilters.cli.tables import show
from keyfilters.errors import KeyFiltersError

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
) -> None:
    """Train a model on labelled images by a recipe.

    With --out, writes checkpoint.pt now and then, from which the same command goes on; recipe.toml
    (all that counts), metrics.jsonl (one line an epoch), and at the end model.safetensors,
    ema.safetensors, summary.json and curves.png. On several devices: torchrun --nproc-per-node 2
    -m keyfilters train …
    """
    import torch

    from keyfilters.report.training_figure import training_figure
    from keyfilters.training import Recipe
    from keyfilters.training import train as run

    check_out(out)
    if device != "auto":
        check_device(device)
    changes = [*(change or []), *([] if seed is None else [f"seed={seed}"])]
    asked = Recipe.load(recipe, *changes)
    where = None if device == "auto" else device
    with progress_bar() as step:

        def tell(done: int, steps: int, what: str) -> None:
            step(what, done, steps)

        trained = run(asked, out, device=where, progress=tell)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    main = not distributed or torch.distributed.get_rank() == 0
    if distributed:
        torch.distributed.destroy_process_group()
    if not main:
        return
    name = f"{asked.model.name} on {trained.summary['data']['name']}"
    columns = [x for x in trained.history if x != "step" and x != "lr"]
    show(trained.history[columns].tail(SHOWN), name)
    for image, reason in trained.summary["data"]["skipped"]:
        typer.echo(f"left out {image}: {reason}", err=True)
    if out is not None:
        try:
            training_figure(trained.history, name).savefig(out / "curves.png", dpi=150)
        except OSError as error:
            raise KeyFiltersError(f"cannot write to {out}: {error.strerror or error}") from error
        typer.echo(f"The model: {(out / 'model.safetensors').resolve()}")

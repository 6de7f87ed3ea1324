"""``keyfilters reproduce``: the figures of the five papers, measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyfilters.cli.common import Device, Out, Seed, check_out, command_line, folder_at_once
from keyfilters.cli.common import progress_bar as bar
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError

MEASURED = ("figure", "quantity", "published", "measured", "difference", "null", "note")
SHOWN = 40  # rows that are printed at most; all of them are on the page


def reproduce(
    paper: Annotated[
        str,
        typer.Argument(help="unveiling, echos, masterkey, modelling or quest.", show_default=False),
    ] = "",
    list_all: Annotated[
        bool, typer.Option("--list", help="List every figure that is known, with its state.")
    ] = False,
    filters: Annotated[
        Path | None,
        typer.Option(
            help="The eight learned filters (master_key_filters.txt of the paper's authors).",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of model files named as timm names the models; default: the hub.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Measure what the papers report, and set it beside what they report.

    A figure that needs what is not here is listed with what it needs. With --out, writes
    report.html (the page), figures.csv and measured.csv. It runs on the CPU, whatever --device
    says.
    """
    from keyfilters.reproduction import PAPERS, Inputs, list_figures
    from keyfilters.reproduction import reproduce as measure

    check_out(out)
    for given in (filters, weights):
        if given is not None and not given.exists():
            raise KeyFiltersError(f"{given} does not exist; name a file for --filters, a folder "
                                  "for --weights")  # fmt: skip
    if list_all or not paper:
        listed = list_figures(Inputs(filters, weights))
        if paper:
            measure_names = [figure.name for figure in PAPERS.get(paper, [])]
            listed = listed[listed["figure"].isin(measure_names)]
        show(listed, "figures of the papers")
        if not paper and not list_all:
            say(f"name one to measure it: {', '.join(PAPERS)}")
        return
    with bar() as step:
        found = measure(paper, Inputs(filters, weights, seed, lambda name: step(name)))
    show(found.digest, paper)
    if 0 < len(found.rows) <= SHOWN:
        show(found.rows, "measured", MEASURED)
    if out is not None:
        from keyfilters.report.reproduction_page import write_reproduction_report

        with folder_at_once(out) as unfinished:
            write_reproduction_report(found, unfinished / "report.html", command=command_line())
            found.figures.to_csv(unfinished / "figures.csv", index=False)
            found.rows.to_csv(unfinished / "measured.csv", index=False)
        say(f"The page: {(out / 'report.html').resolve()}")

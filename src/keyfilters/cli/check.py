"""``keyfilters check``: is this model healthy?"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.common import (
    Device,
    Out,
    Seed,
    Sources,
    check_out,
    command_line,
    folder_at_once,
)
from keyfilters.cli.common import progress_bar as bar
from keyfilters.cli.tables import say, show

if TYPE_CHECKING:
    from keyfilters.inspection import Check

SHOWN = ("rule", "level", "model", "layer", "filters", "measured", "threshold")
NUMBERS = ("measured", "threshold")
WORST = ("rule", "level", "model", "layers", "worst", "filters", "measured", "threshold")


class Format(StrEnum):
    """What is printed."""

    table = "table"
    json = "json"
    sarif = "sarif"


def check(
    source: Sources,
    off: Annotated[
        str, typer.Option(help="Rules not to apply, with commas.", show_default=False)
    ] = "",
    strict: Annotated[
        bool, typer.Option(help="End with exit code 1 if there is an error or a warning.")
    ] = False,
    format: Annotated[Format, typer.Option(help="What to print.")] = Format.table,
    rules: Annotated[
        bool, typer.Option("--rules", help="Print what every rule measures as well.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Print every finding, in place of the worst of each rule."),
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Check the health of a model's depthwise filters, layer by layer, in seconds.

    Finds dead, constant, non-finite, repeated, untrained, exploding, vanishing, off-grid and
    high-frequency filters, and taps that few bits cannot hold. A note is a fact that healthy models
    show too; a warning is not. With --out, writes report.html (the filters in question),
    findings.csv, check.json and check.sarif (for code scanning). It runs on the CPU, whatever
    --device says; --seed draws the null filters.
    """
    import keyfilters as kf
    from keyfilters.report.check_page import write_check_report

    check_out(out)
    with bar() as step:
        bank = kf.read(*source, seed=seed, progress=lambda name: step(f"reading {name}"))
        found = kf.check(bank, off=[x.strip() for x in off.split(",") if x.strip()], seed=seed)
    if format is Format.json:
        typer.echo(found.to_json())
    elif format is Format.sarif:
        typer.echo(found.to_sarif())
    else:
        _print(found, rules, every)
    if out is not None:
        with folder_at_once(out) as unfinished:
            found.findings.to_csv(unfinished / "findings.csv", index=False)
            (unfinished / "check.json").write_text(found.to_json() + "\n", encoding="utf-8")
            (unfinished / "check.sarif").write_text(found.to_sarif() + "\n", encoding="utf-8")
            write_check_report(found, unfinished / "report.html", command=command_line())
        if format is Format.table:
            say(f"The page: {(out / 'report.html').resolve()}")
    if strict and not found.ok:
        raise typer.Exit(1)


def _print(found: Check, rules: bool, every: bool) -> None:
    """Print the findings, and what they mean; of each rule the worst, or all of them."""
    if rules:
        for rule in found.rules:
            alarms = ", ".join(f"{x:.0%} of {k}" for k, x in rule.false_alarms.items())
            say(
                f"{rule.name} ({rule.level}): {rule.measures}; above {rule.threshold:g} in "
                f"{alarms} models"
            )
    worst = found.worst
    if len(worst):
        shown = found.findings if every else worst.assign(worst=worst["layer"])
        shown = shown.assign(**{x: shown[x].map("{:.3g}".format) for x in NUMBERS})
        alone = found.bank.models[1:] == []
        columns = [x for x in (SHOWN if every else WORST) if x != "model" or not alone]
        show(shown, "findings", tuple(columns), numbers=NUMBERS)
        for row in worst.drop_duplicates("rule").itertuples():
            say(f"{row.rule}: {row.message}")
    say(repr(found))

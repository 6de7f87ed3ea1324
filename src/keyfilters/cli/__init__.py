"""The command line: one verb a task, each a thin layer over the library."""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
from typing import Annotated

import typer

from keyfilters.cli.atlas import atlas
from keyfilters.cli.check import check
from keyfilters.cli.common import one_command
from keyfilters.cli.compare import compare
from keyfilters.cli.discover import discover
from keyfilters.cli.experiment import app as experiment
from keyfilters.cli.fit import fit
from keyfilters.cli.init import init
from keyfilters.cli.read import read
from keyfilters.cli.replace import replace
from keyfilters.cli.reproduce import reproduce
from keyfilters.cli.sources import sources
from keyfilters.cli.train import train
from keyfilters.errors import KeyFiltersError, mend_of, shown
from keyfilters.texts import printable

__all__ = ["app", "main"]

READER_GONE = 141  # as a shell says of a process whose reader, such as head, has ended

app = typer.Typer(
    name="keyfilters",
    help="Read, name and explain the spatial filters of depthwise-separable CNNs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"keyfilters {importlib.metadata.version('keyfilters')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before any verb."""


for verb in (atlas, check, compare, discover, fit, init, read, replace, reproduce, sources,
             train):  # fmt: skip
    app.command()(verb)
app.add_typer(experiment, name="experiment")


def main() -> None:
    """Run the command line; what the user can mend ends with one sentence and exit code 2."""
    # Threads that spin while they wait make a busy machine crawl. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal without the letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with one_command():
            app()
    except KeyFiltersError as error:
        message = str(error)
    except OSError as error:  # a full disk, a folder that is gone: nothing that is ours to mend
        named = f" ({shown(error.filename)})" if isinstance(error.filename, str) else ""
        message = f"{error.strerror or error}{named}; {mend_of(error)}"
    except SystemExit as end:
        if end.code == 1 and isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(READER_GONE) from end  # 1 says that check --strict found something
        raise
    else:
        return
    print(f"keyfilters: {printable(message)}", file=sys.stderr)
    sys.exit(2)

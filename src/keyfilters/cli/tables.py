"""Frames and names on the terminal: what stands in a file is shown, never obeyed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from keyfilters.texts import printable

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from rich.table import Table
    from rich.text import Text

__all__ = ["cell", "print_table", "say", "show", "write_parquet"]

LONGEST = 300  # characters of a name in a table
WIDE = 2000  # characters of a line that no terminal shows


def say(text: str, *, err: bool = False) -> None:
    """Print lines that may hold names."""
    import typer

    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def cell(text: str) -> Text:
    """Return a text as a table of rich takes it, without markup; the middle of long ones is cut."""
    from rich.text import Text

    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"
    return Text("\n".join(map(printable, text.split("\n"))))


def print_table(table: Table) -> None:
    """Print a table; in a file or a pipe its lines are as long as they need."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)
    console.print(table)


def show(
    frame: pd.DataFrame,
    title: str,
    columns: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
) -> None:
    """Print some columns of a frame, leaving out those that are empty.

    Args:
        frame: one row a line.
        title: above the table.
        columns: those to print; all if none.
        numbers: columns of text that stand to the right, as numbers do.
    """
    from rich.table import Table

    table = Table(title=cell(title))
    given = columns or tuple(frame.columns)
    shown = [c for c in given if not frame[c].isna().all() and (frame[c] != "").any()]
    for column in shown:
        text = column not in numbers and any(isinstance(value, str) for value in frame[column])
        justify: Any = "left" if text else "right"
        whole = column in numbers
        table.add_column(column.replace("_", " "), overflow="fold", justify=justify, no_wrap=whole)
    for row in frame[shown].itertuples(index=False):
        table.add_row(*map(_word, row))
    print_table(table)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame into a file of any name; pandas itself takes no name that is not UTF-8."""
    path.write_bytes(frame.to_parquet(index=False))


def _word(value: Any) -> Text:
    if isinstance(value, str):
        return cell(value)
    if isinstance(value, float):
        return cell("" if value != value else f"{value:.3f}")
    return cell(f"{value:,}")

"""Frames on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["show"]


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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    given = columns or tuple(frame.columns)
    shown = [c for c in given if not frame[c].isna().all() and (frame[c] != "").any()]
    for column in shown:
        text = column not in numbers and any(isinstance(value, str) for value in frame[column])
        justify: Any = "left" if text else "right"
        whole = column in numbers
        table.add_column(column.replace("_", " "), overflow="fold", justify=justify, no_wrap=whole)
    for row in frame[shown].itertuples(index=False):
        table.add_row(*map(_word, row))
    Console().print(table)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    return str(value) if isinstance(value, str) else f"{value:,}"

"""``keyfilters read``: which depthwise filters are in there?"""

from __future__ import annotations

from collections import Counter

from keyfilters.cli.common import (
    Device,
    Out,
    Seed,
    Sources,
    check_out,
    folder_at_once,
    progress_bar,
)
from keyfilters.cli.tables import cell, print_table, say


def read(
    source: Sources,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """List the depthwise layers of one or several models, and what was not taken.

    With --out, writes bank.safetensors (the filters, which every other verb reads), layers.csv and
    skipped.csv. Reading happens on the CPU, whatever --device says; --seed initialises models that
    are read without pretrained weights.
    """
    import pandas as pd
    from rich.table import Table

    from keyfilters import read as read_bank

    check_out(out)
    with progress_bar() as step:
        bank = read_bank(*source, seed=seed, progress=lambda name: step(f"reading {name}"))
    rows: list[dict[str, str | int | float]] = [
        {
            "model": layer.model,
            "layer": layer.name,
            "kernel": "×".join(map(str, layer.size)),
            "filters": len(layer.weight),
            "stride": "×".join(map(str, layer.stride)) if layer.stride else "",
            "dilation": "×".join(map(str, layer.dilation)) if layer.dilation else "",
            "padding": _padding(layer.padding),
            "multiplier": layer.multiplier or "",
            "groups": layer.groups or "",
            "depth": round(layer.depth, 4),
            "note": layer.note,
        }
        for layer in bank.layers
    ]
    table = Table(title=cell(repr(bank)))
    columns = ("model", "layer", "kernel", "filters", "stride", "dilation", "padding", "depth")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(str(row[column])) for column in columns))
    print_table(table)
    _print_counts("note", Counter(layer.note for layer in bank.layers if layer.note))
    _print_counts("skipped", Counter(reason for _, reason in bank.skipped))
    unusable = bank.unusable()
    _print_counts("unusable filter", Counter(unusable["flaw"]))
    if out is not None:
        with folder_at_once(out) as unfinished:
            bank.save(unfinished / "bank.safetensors")
            pd.DataFrame(rows).to_csv(unfinished / "layers.csv", index=False)
            skipped = pd.DataFrame(bank.skipped, columns=["name", "reason"])
            skipped.to_csv(unfinished / "skipped.csv", index=False)
        say(f"The filters: {(out / 'bank.safetensors').resolve()}")


def _padding(padding: tuple[int, ...] | str | None) -> str:
    return "×".join(map(str, padding)) if isinstance(padding, tuple) else padding or ""


def _print_counts(what: str, counts: Counter[str]) -> None:
    for text, count in counts.most_common():
        say(f"{what}: {count} × {text}")

"""``keyfilters atlas``: what are a model's filters, and how far is that above chance?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.common import (
    Address,
    CpusPerRun,
    Device,
    ExecutorName,
    Seed,
    Sources,
    check_out,
    command_line,
    executor_of,
    folder_at_once,
    progress_bar,
    read_bank,
    typed,
)
from keyfilters.cli.tables import cell, print_table, say, write_parquet
from keyfilters.errors import KeyFiltersError

OF_FITS = ("seeds", "threshold", "feed_forward", "by_layer", "device", "executor", "address",
           "cpus_per_run")  # fmt: skip

if TYPE_CHECKING:
    from rich.table import Table

    from keyfilters.clusters import Atlas


Threshold = Annotated[
    float | None,
    typer.Option(
        help="Dissimilarity below which a filter is classified. "
        "Default: 0.3 for windows of 49 taps and more, 0.2 for smaller ones.",
        show_default=False,
    ),
]
FeedForward = Annotated[
    bool,
    typer.Option(
        "--feed-forward",
        help="Fit also the encoder network of the first publication, as a control; slow.",
    ),
]
ByLayer = Annotated[
    bool,
    typer.Option(
        "--by-layer",
        help="Noise of the filters' covariance with a covariance of every large layer: "
        "stricter where layers differ.",
    ),
]
Like = Annotated[
    str,
    typer.Option(
        help="Name the filters by the patterns of an atlas that was fitted before, in seconds: "
        "zoo-5x5, which ships with the package, or the folder of an atlas.",
        show_default="fit anew",
    ),
]


def atlas(
    context: typer.Context,
    source: Sources,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("atlas"),
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="Runs over which spreads are taken.", min=1)] = 3,
    threshold: Threshold = None,
    feed_forward: FeedForward = False,
    by_layer: ByLayer = False,
    like: Like = "",
    device: Device = "cpu",
    executor: ExecutorName = "",
    address: Address = "",
    cpus_per_run: CpusPerRun = 1,
) -> None:
    """Cluster and name all filters of one or several models, beside null filters.

    Writes report.html (the page to look at), filters.parquet (one row a filter), summary.json
    (every figure), bank.safetensors (the filters) and atlas.safetensors (the patterns, for --like)
    into the folder --out; with --like filters.parquet only. With --executor ray the nodes of the
    cluster also do what is done filter by filter, on their processors; the results are the same.
    """
    from keyfilters import Atlas, write_report
    from keyfilters.experiments.executors import pieces_on

    check_out(out)
    if like:
        if unused := typed(context, *OF_FITS):
            raise KeyFiltersError(f"with --like nothing is fitted; leave out {', '.join(unused)}")
        _name_like(source, like, out, seed)
        return
    fitted = Atlas(seed=seed, seeds=seeds, threshold=threshold, feed_forward=feed_forward,
                   by_layer=by_layer, device=device)  # fmt: skip
    where = executor_of(executor, address, cpus_per_run)
    with progress_bar() as step:
        bank = read_bank(source, out, seed, where, step)
    with progress_bar(total=fitted.steps(bank)) as step:
        with pieces_on(where):
            fitted.fit(bank, progress=step)
        step("writing the page")
        with folder_at_once(out) as unfinished:
            fitted.save(unfinished)
            write_report(fitted, unfinished / "report.html", command=command_line())
    _tell(fitted)
    say(f"The page: {(out / 'report.html').resolve()}")


def _tell(fitted: Atlas) -> None:
    """Print what was found, and what was left out."""
    print_table(_table(fitted))
    for size in fitted.sizes_.values():
        share = size.patterns.table.groupby("name")["share"].sum().sort_values(ascending=False)
        names = ", ".join(f"{name} {part:.0%}" for name, part in share.head(6).items())
        kernel = f"{size.size[0]}×{size.size[1]}"
        say(f"\n{kernel}: {names}")
        for sentence in fitted.words_[size.size].values():
            say(sentence)
    typer.echo()
    for flaw, count in fitted.summary_["unusable"].items():
        say(f"left out: {count:,} {flaw} filters")
    for (k_y, k_x), why in fitted.unclustered_.items():
        say(f"{k_y}×{k_x}: no patterns looked for, {why}")


def _name_like(source: list[str], like: str, out: Path, seed: int) -> None:
    """Name filters by patterns that were fitted before."""
    import keyfilters as kf
    from keyfilters.clusters.pattern_book import named_beside_nulls

    book = kf.load_atlas(like)
    with progress_bar() as step:
        bank = kf.read(*source, seed=seed, progress=lambda name: step(f"reading {name}"))
        step("naming")
        found, shares = named_beside_nulls(book, bank, seed)
    with folder_at_once(out) as unfinished:
        write_parquet(found, unfinished / "filters.parquet")
    names = found["name"][found["classified"]].value_counts() / len(found)
    say(", ".join(f"{name} {share:.0%}" for name, share in names.head(8).items()))
    nulls = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items() if kind != "filters")
    say(f"classified: {shares['filters']:.1%} of {len(found):,}; of null filters: {nulls}")
    if left := len(bank) - len(found):
        say(f"{left:,} filters of other kernel sizes have no patterns there")
    say(f"The filters: {(out / 'filters.parquet').resolve()}")


def _table(fitted: Atlas) -> Table:
    from rich.table import Table

    from keyfilters.clusters.methods import ONE_DIMENSION
    from keyfilters.nulls import NULLS

    models = fitted.bank_.models
    names = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    table = Table(title=cell(f"{len(fitted.bank_):,} filters of {names}"))
    table.add_column("kernel")
    for column in ("filters", "usable", "patterns", "classified", "held out", "strictest null"):
        table.add_column(column, justify="right")
    claims = fitted.claims_.set_index(["size", "claim"])
    for size, found in fitted.sizes_.items():
        kernel = f"{size[0]}×{size[1]}"
        row = claims.loc[(kernel, f"coverage, {ONE_DIMENSION}")]
        strictest = max(NULLS, key=lambda null: row[null])
        table.add_row(
            kernel,
            f"{fitted.bank_.sizes[size]:,}",
            f"{len(found.rows):,}",
            str(len(found.patterns.table)),
            *(f"{row[column]:.1%}" for column in ("value", "held_out")),
            f"{row[strictest]:.1%} {strictest}",
        )
    return table

"""``keyfilters compare``: what differs between two models, or along a training?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyfilters.cli.common import (
    Device,
    Out,
    Seed,
    Sources,
    check_out,
    command_line,
    folder_at_once,
    progress_bar,
)
from keyfilters.cli.tables import say, show, write_parquet
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from keyfilters.inspection import Comparison

SHOWN = ("layer", "size", "pairs", "untouched", "cosine", "null", "norm_ratio", "change")
COSINES = ("cosine", "null", "cosine to the first", "cosine to the one before")
FLOWS = 8  # pairs of patterns that are printed


def compare(
    source: Sources,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Compare two models filter by filter, or the steps of a training from first to last.

    More than two files whose names differ in a number only are put in its order (step-20 before
    step-100). Models with the same layers are compared by position (quantised and float, before and
    after fine-tuning), others by relative depth and kernel size. Everything stands beside what a
    change of equal size in random directions gives, or as many filters without structure. With
    --out, writes report.html (the page), layers.csv, totals.csv, flow.csv, filters.parquet, and
    steps.csv where there are more than two. It runs on the CPU, whatever --device says.
    """
    import keyfilters as kf
    from keyfilters.inspection.compare import in_order
    from keyfilters.report.compare_page import write_comparison_report

    check_out(out)
    if len(source) < 2:
        raise KeyFiltersError("one source was given; name two or more: keyfilters compare A B")
    ordered = in_order(source)
    if ordered != source:
        say(f"in the order of the numbers in their names: {', '.join(ordered)}")
    with progress_bar() as step:
        found = kf.compare(ordered[0], ordered[1], *ordered[2:], seed=seed, progress=step)
    _show(found)
    say(found.verdict)
    if out is not None:
        with folder_at_once(out) as unfinished:
            write_comparison_report(found, unfinished / "report.html", command=command_line())
            found.layers.to_csv(unfinished / "layers.csv", index=False)
            found.totals.to_csv(unfinished / "totals.csv", index=False)
            found.flow.to_csv(unfinished / "flow.csv", index=False)
            write_parquet(found.filters, unfinished / "filters.parquet")
            if found.steps is not None:
                found.steps.to_csv(unfinished / "steps.csv", index=False)
        say(f"The page: {(out / 'report.html').resolve()}")


def _show(found: Comparison) -> None:
    """Print layers, patterns that became others, measures and steps."""
    layers = found.layers.assign(**{x: found.layers[x].map(_narrow) for x in COSINES[:2]})
    show(layers, f"{found.a} and {found.b}", SHOWN, numbers=COSINES)
    became = found.flow[(found.flow["from"] != found.flow["to"]) & (found.flow["share"] > 0)]
    if len(became):
        shares = {x: became[x].map("{:.1%}".format) for x in became.columns[2:]}
        title = "patterns that became others: share of the filters, and in each null"
        show(became.assign(**shares).head(FLOWS), title, numbers=tuple(shares))
    totals = found.shown_totals()
    show(totals, "in all, beside the strictest null", numbers=("a", "b", "null"))
    if found.steps is not None:
        told = {x: found.steps[x].map(_narrow) for x in COSINES[2:]}
        show(found.steps.assign(**told), "steps", numbers=COSINES)


def _narrow(cosine: float) -> str:
    from keyfilters.inspection.comparison import near_one

    return near_one(cosine).replace(" ", "")

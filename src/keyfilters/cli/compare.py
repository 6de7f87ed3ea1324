"""``keyfilters compare``: what differs between two models, or along a training?"""

from __future__ import annotations

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
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError

SHOWN = ("layer", "size", "pairs", "untouched", "cosine", "null", "norm_ratio", "change")


def compare(
    source: Sources,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Compare two models filter by filter, or the steps of a training from first to last.

    Models with the same layers are compared by position (quantised and float, before and after
    fine-tuning), others by relative depth and kernel size. Everything stands beside what a change
    of equal size in random directions gives, or as many filters without structure. With --out,
    writes report.html (the page), layers.csv, totals.csv, flow.csv, filters.parquet, and steps.csv
    where there are more than two. It runs on the CPU, whatever --device says.
    """
    import keyfilters as kf
    from keyfilters.report.compare_page import write_comparison_report

    check_out(out)
    if len(source) < 2:
        raise KeyFiltersError("one source was given; name two or more: keyfilters compare A B")
    with progress_bar() as step:
        found = kf.compare(source[0], source[1], *source[2:], seed=seed, progress=step)
    show(found.layers, f"{found.a} and {found.b}", SHOWN)
    show(found.totals, "in all, and in each null")
    if found.steps is not None:
        show(found.steps, "steps")
    say(found.verdict)
    if out is not None:
        with folder_at_once(out) as unfinished:
            write_comparison_report(found, unfinished / "report.html", command=command_line())
            found.layers.to_csv(unfinished / "layers.csv", index=False)
            found.totals.to_csv(unfinished / "totals.csv", index=False)
            found.flow.to_csv(unfinished / "flow.csv", index=False)
            found.filters.to_parquet(unfinished / "filters.parquet", index=False)
            if found.steps is not None:
                found.steps.to_csv(unfinished / "steps.csv", index=False)
        say(f"The page: {(out / 'report.html').resolve()}")

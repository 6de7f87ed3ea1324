"""Reading many sources as a grid: one run a source, at once, on one machine or many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.experiments.processes import Executor, in_processes
from keyfilters.experiments.runner import run_grid
from keyfilters.experiments.runs import Run
from keyfilters.sources import READERS, join, read_one

__all__ = ["read_source", "read_sources"]


def read_sources(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    workers: int | None = None,
    executor: Executor = in_processes,
    progress: Callable[[str], object] | None = None,
) -> FilterBank:
    """Read sources as `keyfilters.read` does, each in a run of its own.

    Interrupt it and call it again: what was read stays, in ``out/runs/SOURCE/seed-N``. Files that
    have changed since are refused.

    Args:
        sources: names and paths; see `keyfilters.read`.
        out: folder of the grid.
        seed: initialises models that are read without pretrained weights.
        workers: sources at a time; see `run_grid`.
        executor: see `run_grid`. On a cluster its nodes must see the files.
        progress: see `run_grid`.

    Returns:
        The bank, in the order of the sources.

    Raises:
        SourceError: a source cannot be read; what the others gave stays.
        NoFiltersError: there is no depthwise filter.
        KeyFiltersError: what else `run_grid` refuses.
    """
    runs = {source: Run(source, seed, _asked(source)) for source in sources}
    if not runs:
        return join(sources, [])
    table = run_grid(
        list(runs.values()),
        read_source,
        out,
        workers=workers,
        executor=executor,
        progress=progress,
    )
    failed = table.loc[table["status"] == "failed", ["condition", "error"]]
    if len(failed):
        told = "; ".join(f"{source}: {error}" for source, error in failed.itertuples(index=False))
        raise SourceError(f"{len(failed)} of {len(runs)} sources cannot be read: {told}")
    banks = (FilterBank.load(Path(out, runs[s].folder, "bank.safetensors")) for s in sources)
    return join(sources, banks)


def read_source(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Read one source into ``bank.safetensors``: a run of `read_sources`."""
    bank = read_one(options["source"], seed)
    bank.save(folder / "bank.safetensors")
    return {"layers": len(bank.layers), "filters": len(bank), "skipped": len(bank.skipped)}


def _asked(source: str) -> dict[str, Any]:
    """Return the options of a source; of files also what shows that they have changed."""
    path = Path(source)
    if not path.exists():
        return {"source": source}
    inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS)
    states = [p.stat() for p in inside or [path]]
    return {
        "source": str(path.absolute()),
        "bytes": sum(s.st_size for s in states),
        "changed": max(s.st_mtime for s in states),
    }

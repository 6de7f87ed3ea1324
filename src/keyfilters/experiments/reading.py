"""Reading many sources as a grid: one run a source, at once, on one machine or many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from typing import Any

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.experiments.executors import Executor
from keyfilters.experiments.grid import run_grid
from keyfilters.experiments.run import Run
from keyfilters.sources import join, package_files, read_one

__all__ = ["read_source", "read_sources"]

FUNCTION = f"{__name__}:read_source"


def read_sources(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[str], object] = lambda words: None,
) -> FilterBank:
    """Read sources as `keyfilters.read` does, each in a run of its own.

    Interrupt it and call it again: what was read stays, and is found again unless a file changed.

    Args:
        sources: names and paths; see `keyfilters.read`.
        out: folder of the grid.
        seed: initialises models that are read without pretrained weights.
        executor: see `run_grid`. On a cluster its nodes must see the files.
        progress: see `run_grid`.

    Returns:
        The bank, in the order of the sources.

    Raises:
        SourceError: a source cannot be read; what the others gave stays.
        NoFiltersError: there is no depthwise filter.
        KeyFiltersError: what else `run_grid` refuses.
    """
    runs = {
        source: Run({"source": source}, seed, FUNCTION, _options(source), {}, _contents(source))
        for source in sources
    }
    if not runs:
        return join(sources, [])
    table = run_grid(list(runs.values()), out, executor=executor, progress=progress)
    failed = table.loc[table["status"] == "failed", ["source", "error"]]
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


def _options(source: str) -> dict[str, Any]:
    return {"source": str(Path(source).absolute()) if Path(source).exists() else source}


def _contents(source: str) -> dict[str, str]:
    """Return what shows that a file of a source, or one beside it of its name, has changed."""
    name = source if Path(source).exists() else source.partition("#")[0]  # FILE#SET
    found, files = hashlib.sha256(), list[Path]()
    if name.startswith("package:"):
        with suppress(SourceError):  # the run will say what is wrong with it
            files += package_files(name.removeprefix("package:"))
    else:
        for root in map(Path, sorted(glob(name, recursive=True)) or [name]):  # noqa: PTH207
            beside = f"{escape(root.name.partition('.')[0])}*"
            files += root.rglob("*") if root.is_dir() else root.parent.glob(beside)
    for file in sorted(x for x in files if x.is_file()):
        state = file.stat()
        found.update(f"{file} {state.st_size} {state.st_mtime_ns}".encode())
    return {source: found.hexdigest()[:16]} if files else {}

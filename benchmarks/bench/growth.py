"""How time and memory grow with the number of filters: every job in a process of its own.

python -m benchmarks.bench.growth match 100000    # one job, as the benchmark starts it
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import processes

COUNTS = (10_000, 100_000, 1_000_000)
LARGEST = 10_000_000  # by an option only
PIECE = 100_000  # filters that are drawn at a time
CENTRES = 128

Row = dict[str, Any]


def drawn(count: int) -> np.ndarray:
    """Return smooth drawn filters ``(count, 7, 7)`` float32."""
    from .filters import smooth

    filters = np.empty((count, 7, 7), dtype=np.float32)
    for start in range(0, count, PIECE):
        filters[start : start + PIECE] = smooth(min(PIECE, count - start), seed=start)
    return filters


def _nothing(filters: np.ndarray) -> None:
    """Only hold the filters: what all jobs have in common."""


def _match(filters: np.ndarray) -> None:
    import keyfilters as kf

    kf.match(filters, null=None)


def _assign(filters: np.ndarray) -> None:
    import keyfilters as kf

    kf.KeySet.published("lindeberg2026-B").assign(filters)


def _pass(filters: np.ndarray) -> None:
    from .matching import dictionary_pass

    dictionary_pass(filters)()


def _minibatch(filters: np.ndarray) -> None:
    from sklearn.cluster import MiniBatchKMeans

    MiniBatchKMeans(CENTRES, n_init=1, random_state=0).fit(filters.reshape(len(filters), -1))


def _faiss(filters: np.ndarray) -> None:
    import faiss

    flat = filters.reshape(len(filters), -1)
    found = faiss.Kmeans(49, CENTRES, niter=25, seed=0, max_points_per_centroid=len(flat))
    found.train(flat)


JOBS: dict[str, Callable[[np.ndarray], None]] = {
    "the filters alone": _nothing,
    "kf.match": _match,
    "KeySet.assign": _assign,
    "one pass |X·D|": _pass,
    f"MiniBatchKMeans, {CENTRES}": _minibatch,
    f"faiss Kmeans, {CENTRES}": _faiss,
}
ATLAS = "keyfilters atlas BANK"
PAGE = 5.0  # MB at most, whatever the number of filters
MOST = {1_000_000: (120.0, 4.0), LARGEST: (900.0, 4.0)}  # seconds and GB of the atlas


def measure(counts: Sequence[int], seconds: float) -> list[Row]:
    """Run all jobs on all numbers of filters, smallest first, as far as the time reaches.

    Args:
        counts: numbers of filters.
        seconds: for everything. A job that would not fit, were it to grow linearly, is left out,
            and its row says how long it would take.

    Returns:
        One row a job and number: job, filters, seconds (of the work, without imports; from the
        shell for the atlas), memory (GB, most of the process), page (MB, of the atlas), left_out
        (the seconds it would have taken), limits in words, and whether they are met.
    """
    ends = time.perf_counter() + seconds
    rows: list[Row] = []
    before: dict[str, float] = {}
    for i, count in enumerate(counts):
        for job in (*JOBS, ATLAS):
            growth = count / counts[i - 1] if i else 1
            expected = before.get(job, 0.0) * growth
            before[job] = expected
            if time.perf_counter() + expected > ends:
                rows.append(_row(job, count, left_out=expected))
                continue
            rows.append(_row(job, count, *(_atlas(count) if job == ATLAS else _job(job, count))))
            before[job] = rows[-1]["seconds"]
    return rows


def _row(
    job: str,
    count: int,
    seconds: float | None = None,
    memory: float | None = None,
    page: float | None = None,
    left_out: float | None = None,
) -> Row:
    most = MOST.get(count, (None, None)) if job == ATLAS else (None, None)
    held = [(seconds, most[0], "s"), (memory, most[1], "GB"), (page, page and PAGE, "MB")]
    limits = [(value, limit, unit) for value, limit, unit in held if limit is not None]
    met = [value is not None and value <= limit for value, limit, _ in limits]
    return {
        "job": job,
        "filters": count,
        "seconds": seconds,
        "memory": memory,
        "page": page,
        "left_out": left_out,
        "limits": ", ".join(f"{limit:g} {unit}" for _, limit, unit in limits),
        "met": all(met) if met else None,
    }


def _job(job: str, count: int) -> tuple[float, float]:
    used = processes.python("-m", "benchmarks.bench.growth", job, str(count))
    return float(json.loads(used.output)), used.memory


def _atlas(count: int) -> tuple[float, float, float]:
    """Save a bank, and make its atlas by the command: seconds, memory, and the size of its page."""
    with TemporaryDirectory() as folder:
        bank, out = str(Path(folder) / "bank.safetensors"), Path(folder) / "atlas"
        processes.python("-m", "benchmarks.bench.growth", "save", str(count), bank)
        used = processes.keyfilters(["atlas", bank, "--out", str(out)])
        page = (out / "report.html").stat().st_size / 1e6
    return used.seconds, used.memory, page


def _save(count: int, path: str) -> None:
    from .filters import bank_of

    bank_of(drawn(count)).save(path)


def main() -> None:
    """Do one job and print its seconds."""
    job, count, *path = sys.argv[1:]
    if job == "save":
        _save(int(count), *path)
        return
    import keyfilters as kf

    kf.match(drawn(200), null=None)  # imports and tables are no part of the growth
    filters = drawn(int(count))
    started = time.perf_counter()
    JOBS[job](filters)
    print(json.dumps(time.perf_counter() - started))


if __name__ == "__main__":
    main()

"""Inputs in processes of their own, each with bounds of time and memory."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from .inputs import INPUTS
from .watch import Watch

__all__ = ["MEMORY", "SECONDS", "fuzz"]

SECONDS, MEMORY = 10, 2 * 2**30  # of processor time for one input; bytes beside what it had before
WALL = 120  # seconds by the clock: it waits for something, however busy the machine is
FAULTS = 200  # after so many of one target it is given up


def _work(kind: str, name: str, folder: Path, seed: int, start: int, count: int, note: Any) -> None:
    """Give inputs `start` to `count` of one target; what goes wrong goes to ``folder/faults``."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place, temporary = folder / "given", folder / "tmp"
    for made in (place, temporary):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    os.environ.update(TMPDIR=str(temporary), HF_HUB_OFFLINE="1", HOME=str(place),
                      XDG_CACHE_HOME=str(temporary), MPLCONFIGDIR=str(temporary))  # fmt: skip
    tempfile.tempdir = None
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libraries in C print
        os.dup2(null, stream)
    watch = Watch(place, temporary)
    log = (folder / "faults").open("a", encoding="utf-8")
    limited = False
    for i, given in enumerate(INPUTS[kind](name, place, seed)):
        if i >= count:
            break
        if i < start:
            continue
        if not limited:
            _limit_memory()
            limited = True
        note[:16] = struct.pack("qq", i, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        watch.begin(given.text)
        told = given.run()
        seen = watch.end()
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        told = told or (f"takes {grown:,} bytes" if grown > MEMORY else "") or str(seen or "")
        if told:
            log.write(f"{name} {i}: {told.encode('unicode_escape').decode()[:3000]}\n")
            log.flush()
    note[:16] = struct.pack("qq", count, 1)


def _limit_memory() -> None:
    """Refuse the process more address space than `MEMORY` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _logged(kind: str, name: str, folder: Path, *told: Any) -> None:
    try:
        _work(kind, name, folder, *told)
    except BaseException:  # of this script, or of a signal that came late
        with (folder / "faults").open("a", encoding="utf-8") as log:
            text = traceback.format_exc().encode("unicode_escape").decode()
            log.write(f"{name}: outside of an input: {text[-1000:]}\n")
        raise


def _wait(process: Any, note: Any) -> str:
    """Wait for a process; one that stands still by the clock is killed."""
    at, since = -1, time.monotonic()
    while process.is_alive():
        process.join(1)
        now = struct.unpack("qq", note[:16])[0]
        if now != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > WALL:
            process.kill()
            process.join()
            return f"stands still for {WALL} s"
    return "" if process.exitcode == 0 else f"the process ends with {process.exitcode}"


def fuzz(kind: str, name: str, seed: int, count: int) -> dict[str, Any]:
    """Give inputs to one target in a process of its own; where one dies, the next one goes on.

    Args:
        kind: of `INPUTS`.
        name: of the target.
        seed: of all that is random.
        count: number of inputs.

    Returns:
        target, inputs, faults (a number), seconds, and first: some of the faults, in words.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    note, start, faults = mmap.mmap(-1, 16), 0, list[str]()
    begun = time.perf_counter()
    try:
        while start < count and len(faults) < FAULTS:
            note[:16] = struct.pack("qq", -1, 0)
            arguments = (kind, name, folder, seed, start, count, note)
            process = multiprocessing.get_context("fork").Process(target=_logged, args=arguments)
            process.start()
            told = _wait(process, note)
            at, done = struct.unpack("qq", note[:16])
            if done:
                break
            faults.append(f"{name} {at}: {told}")
            if at < 0:
                break  # it cannot be given any input
            start = at + 1
        log = folder / "faults"
        faults += log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        given = struct.unpack("qq", note[:16])[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took = time.perf_counter() - begun
    row = {"target": f"{kind}: {name}" if name else kind, "inputs": max(given, 0),
           "faults": len(faults), "seconds": round(took, 1)}  # fmt: skip
    print(row, *(x[:700] for x in faults[:8]), sep="\n  ", flush=True)
    return {**row, "first": faults[:20]}

"""Stop every verb of the command line at random moments, and look at what is left.

    python benchmarks/killed.py [--moments 50] [--seed 0] [--only 'read;check'] [--record]

Each verb first runs undisturbed. Then it is stopped so many times, by SIGINT, SIGTERM and SIGKILL
in turn, at moments drawn evenly from its running time. After each stop:

- files under their final names can be read to their end, all others are marked ``.unfinished-``;
- no process of the command is left after a minute, and no traceback was printed;
- its temporary files are gone, or after SIGKILL marked ``keyfilters-`` (those of libraries that
  only SIGKILL leaves, and torch's own cache, are counted but no fault);
- the same command then ends well, with the same files, and with nothing unfinished beside them.

At last two of each command run in one folder at once: each ends well or refuses, at least one ends
well, and the files are whole. A verb runs in a fork of this process, which has the libraries
loaded, so that the moments fall into its work and not into the import of torch.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hardening import record

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LONGEST = 600  # seconds that a stopped command may take to end, on a busy machine
GONE = 60  # seconds for its other processes to end, on a busy machine: one may import torch
TRIES = 5  # moments drawn for one stop, as the command may have ended before
PAIRS = 3  # how often two of the same command run at once
RECIPE = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
samples = 64
[schedule]
epochs = 2
[checkpoint]
steps = 1
[ema]
decay = 0.9
"""
TINY = "--width 8 --depth 1 --epochs 1 --seeds 1 --device cpu --resolution 8 --workers 1"
VERBS = {
    "read": "read a.pth b.pth",
    "check": "check a.pth",
    "compare": "compare a.pth b.pth",
    "fit": "fit keys.txt --method B",
    "replace": "replace a.pth",
    "init": "init test_efficientnet",
    "sources": "sources",
    "reproduce": "reproduce echos",
    "discover": "discover a.pth --size 5 --rounds 1 --kinds lines --candidates 30",
    "discover, asking a network": "discover timm:test_efficientnet?pretrained=false --size 3 "
    "--criterion outputs --images images --rounds 1 --kinds lines --candidates 6",
    "train": "train recipe.toml",
    "atlas": "atlas small.safetensors --seeds 1",
    "atlas --like": "atlas a.pth --like zoo-5x5",
    "experiment": "experiment initialization --data digits?samples=100 --sizes 3 "
    "--condition default --condition impulse " + TINY,
}
REMARKS = [
    "Columns SIGINT, SIGTERM, SIGKILL: how often the signal met the running command; at the other "
    "moments it had ended.",
    "Left marked: the stop left something under a name that says that it is unfinished.",
    "Moments are drawn from the work of a command in a process that has the libraries loaded; the "
    "import of the libraries was not interrupted.",
    "Found by earlier runs and mended: a signal during the removal of an unfinished folder left "
    "it; a signal during the start of a helper thread left a process that never ended.",
]
TIMED = ("experiment", "train", "reproduce", "sources")  # whose tables hold seconds or the like


def inputs(folder: Path) -> None:
    """Write the small files that the commands read."""
    import torch
    from PIL import Image
    from torch import nn

    import keyfilters as kf

    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 96, 1), nn.Conv2d(96, 96, 5, groups=96), nn.Conv2d(96, 64, 1)]
        torch.save(nn.Sequential(*layers).state_dict(), folder / f"{name}.pth")
    bank = kf.read(folder / "a.pth")
    bank.save(folder / "small.safetensors")
    kf.KeySet.published("lindeberg2026-B", size=7).save(folder / "keys.txt")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "images").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (170, 180, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")


def begin(command: str, out: Path, place: Path, spare: Path) -> Any:
    """Run a command in a fork; what it prints goes to ``spare/log``, its other files to `spare`."""

    def run() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            log = os.open(spare / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ["TMPDIR"] = str(spare / "tmp")
        (spare / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = None
        os.chdir(place)
        sys.argv = ["keyfilters", *command.split(), "--out", str(out)]
        from keyfilters.cli import main

        try:
            main()
        finally:
            for number in SIGNALS[:2]:  # what follows is no work of the command
                signal.signal(number, signal.SIG_IGN)
            atexit._run_exitfuncs()  # type: ignore[attr-defined]  # a fork skips them
            sys.stdout.flush()
            sys.stderr.flush()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def left_over(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def readable(path: Path) -> None:
    """Read a file to its end, by its format."""
    from PIL import Image
    from safetensors.numpy import load_file

    def page(file: Path) -> None:
        assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")

    readers: dict[str, Callable[[Path], Any]] = {
        ".html": page,
        ".json": lambda x: json.loads(x.read_bytes()),
        ".sarif": lambda x: json.loads(x.read_bytes()),
        ".jsonl": lambda x: [json.loads(line) for line in x.read_text().splitlines()],
        ".csv": lambda x: len(x.read_bytes()) < 2 or pd.read_csv(x),
        ".parquet": pd.read_parquet,
        ".safetensors": load_file,
        ".png": lambda x: Image.open(io.BytesIO(x.read_bytes())).load(),
        ".toml": lambda x: tomllib.loads(x.read_text()),
        ".pth": lambda x: __import__("torch").load(x),
    }
    if path.suffix in readers:
        readers[path.suffix](path)


def flaws_of(out: Path) -> list[str]:
    """Return what is wrong with a folder: files that are parts, under final names."""
    found = []
    for path in sorted(out.rglob("*")) if out.exists() else []:
        marked = any(part.startswith(".unfinished-") for part in path.relative_to(out).parts)
        if path.is_file() and not marked:
            if path.name.startswith("."):
                found.append(f"{path.name} is hidden but not marked")
            try:
                readable(path)
            except Exception as error:
                found.append(f"{path.relative_to(out)} is a part ({type(error).__name__})")
    return found


def files_of(out: Path) -> set[str]:
    """Return the names of all files, those of checkpoints and of runs left out."""
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return {x for x in names if not x.startswith(("checkpoint-", "runs/"))}


class Trials:
    """Trials of one verb."""

    def __init__(self, verb: str, place: Path, seed: int) -> None:
        self.verb, self.command, self.place = verb, VERBS[verb], place
        self.rng = np.random.default_rng([seed, list(VERBS).index(verb)])
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.longest = 0.0  # seconds that other processes of a stopped command lived on
        self.whole = Path(tempfile.mkdtemp(dir=place))
        start = time.perf_counter()
        for _ in range(2):  # the second time is that of warm caches
            start = time.perf_counter()
            code, log = self._finish(self._begin(self.whole), self.whole)
            assert code == 0, f"{self.command}: {log}"
        self.seconds = time.perf_counter() - start
        self.expected = files_of(self.whole / "out")
        assert not flaws_of(self.whole / "out"), flaws_of(self.whole / "out")
        if verb in ("train", "experiment", "discover, asking a network"):  # those that go on
            shutil.rmtree(self.whole / "out")
            start = time.perf_counter()
            code, log = self._finish(self._begin(self.whole), self.whole)
            self.seconds = time.perf_counter() - start

    def _begin(self, spare: Path) -> Any:
        return begin(self.command, spare / "out", self.place, spare)

    def _finish(self, process: Any, spare: Path) -> tuple[int | None, str]:
        process.join(LONGEST)
        if process.exitcode is None:
            self.faults["a command hangs"] += 1
            for number in left_over(process.pid):
                os.kill(number, signal.SIGKILL)
            process.join()
        log = spare / "log"  # none, if it was stopped at once
        return process.exitcode, log.read_text(errors="replace") if log.exists() else ""

    def stop(self, number: signal.Signals) -> bool:
        """Stop the verb once, and run it again; say whether the signal met it running."""
        spare = Path(tempfile.mkdtemp(dir=self.place))
        out = spare / "out"
        process = self._begin(spare)
        process.join(float(self.rng.uniform(0, self.seconds)))
        met = process.exitcode is None
        if met:
            os.kill(process.pid, number)
            self.counts[f"stopped by {number.name}"] += 1
        code, log = self._finish(process, spare)
        done = code == 0
        if done:
            self.counts["had ended before"] += 1
        faults = []
        if "Traceback" in log and not log.strip().endswith("KeyboardInterrupt"):
            faults.append("a traceback")
            print(log, flush=True)
        elif "Traceback" in log:
            self.counts["stopped before the command line began"] += 1
        if not done and number != signal.SIGKILL and code not in (130, 143, -2, -15, 1):
            faults.append(f"exit code {code} after {number.name}")
        began = time.monotonic()
        while left_over(process.pid) and time.monotonic() < began + GONE:
            time.sleep(0.05)
        self.longest = max(self.longest, time.monotonic() - began)
        if orphans := left_over(process.pid):
            faults.append("a process is left")
            for orphan in orphans:
                print(Path(f"/proc/{orphan}/cmdline").read_bytes().replace(b"\0", b" "), flush=True)
                os.kill(orphan, signal.SIGKILL)
        faults += flaws_of(out)
        before = [path.name for path in (spare / "tmp").glob("*")]
        foreign = [
            x for x in before if not x.startswith(("keyfilters-", "pymp-", "torchinductor_"))
        ]
        if foreign and number == signal.SIGKILL:
            self.counts["left temporary files of a library"] += 1
        elif foreign or (number != signal.SIGKILL and any("keyfilters-" in x for x in before)):
            faults.append("a temporary file is left")
        held = list(out.rglob(".unfinished-*")) if out.exists() else []
        if held:
            self.counts["left something marked"] += 1
            if number != signal.SIGKILL and not any("-drops" in x.name for x in held):
                faults.append(f"left {held[0].name} after {number.name}")
        if out.exists() and files_of(out) & self.expected:
            self.counts["left finished files"] += 1
        again, log = self._finish(self._begin(spare), spare)
        if again != 0:
            faults.append("the same command fails: " + log.strip().splitlines()[-1][:200])
        else:
            faults += flaws_of(out)
            faults += self._differs(out)
        self.faults.update(f"{x} ({number.name})" for x in faults)
        if faults:
            print(self.verb, number.name, faults, flush=True)
        else:
            shutil.rmtree(spare)
        return met

    def _differs(self, out: Path) -> list[str]:
        """Return how the files of a command that was run again differ from undisturbed ones."""
        there = files_of(out)
        if there != self.expected:
            return [f"other files: {sorted(there ^ self.expected)[:3]}"]
        if self.verb in TIMED:
            return []
        tables = [x for x in there if x.endswith((".csv", ".safetensors", ".parquet"))]
        tables = [x for x in tables if x != "atlas.safetensors"]  # it says how long it took
        other = [
            x for x in tables if (out / x).read_bytes() != (self.whole / "out" / x).read_bytes()
        ]
        return [f"another content: {other[0]}"] if other else []

    def two_at_once(self) -> None:
        """Run two of the same command in one folder."""
        spares = [Path(tempfile.mkdtemp(dir=self.place)) for _ in range(2)]
        out = spares[0] / "out"
        processes = [begin(self.command, out, self.place, spare) for spare in spares]
        ended = [self._finish(p, spare) for p, spare in zip(processes, spares, strict=True)]
        codes = sorted(code if code is not None else -1 for code, _ in ended)
        self.counts["two at once: " + ("one refused" if codes == [0, 2] else f"{codes}")] += 1
        faults = [] if codes in ([0, 0], [0, 2]) else [f"two at once end with {codes}"]
        faults += flaws_of(out) + self._differs(out)
        self.faults.update(f"{x} (two at once)" for x in faults)


def try_verb(verb: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Stop a verb at all moments, run two at once, and return what came of it."""
    start = time.perf_counter()
    trials = Trials(verb, folder, asked.seed)
    for i in range(asked.moments):
        for _ in range(TRIES):
            if trials.stop(SIGNALS[i % len(SIGNALS)]):
                break
    for _ in range(PAIRS):
        trials.two_at_once()
    counts, faults = trials.counts, trials.faults
    stops = {number.name: counts[f"stopped by {number.name}"] for number in SIGNALS}
    told = "; ".join(f"{text}: {count}" for text, count in faults.items())
    row = {"verb": verb, "seconds": round(trials.seconds, 2), **stops,
           "ended before": counts["had ended before"],
           "left marked": counts["left something marked"],
           "two at once, one refused": f"{counts['two at once: one refused']} of {PAIRS}",
           "last process gone after, s": round(trials.longest, 1), "faults": faults.total(),
           "what": told}  # fmt: skip
    print(f"{time.perf_counter() - start:.0f} s, {row}", flush=True)
    return row


def main() -> None:
    """Try every verb and write the part of the page on hardening."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=50, help="of each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="verbs, with semicolons between them")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    asked = parser.parse_args()
    import torch

    import keyfilters.cli
    import keyfilters.report
    import keyfilters.surgery
    import keyfilters.training  # noqa: F401

    torch.set_num_threads(1)
    assert threading.active_count() == 1  # or a fork could hang
    # No TemporaryDirectory: forks run the exit functions that they inherit.
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    try:
        maker = multiprocessing.get_context("fork").Process(target=inputs, args=(folder,))
        maker.start()  # so that no library starts threads in this process
        maker.join()
        rows = [
            try_verb(x, folder, asked) for x in (asked.only.split(";") if asked.only else VERBS)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.record:
        faults = [f"{row['verb']}: {row['what']}." for row in rows if row["what"]]
        rows = [{key: row[key] for key in row if key != "what"} for row in rows]
        record("killed", "Killed at any moment", rows, faults, REMARKS)
    sys.exit(any(row["faults"] for row in rows))


if __name__ == "__main__":
    main()

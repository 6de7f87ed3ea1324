"""A small part of the benchmark: fails where a ratio has become much worse than the recorded one.

Everything runs on one thread, ours and the rival in turn, and only processor time counts. Of
several rounds the least of each counts, since other work on the machine can only add to it. A ratio
that looks worse is measured again, up to three times, and the best counts: a real loss stays. Below
a minute on a quiet machine.

    python -m benchmarks.bench.check [--record]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import keyfilters as kf
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.discovery.elimination import eliminate
from keyfilters.threads import one_thread

from .filters import noise, smooth, unit_rows
from .matching import dictionary_pass
from .report import processor
from .runner import Arm, Clocks, Comparison, interleave

RECORDED = Path(__file__).parents[1] / "results" / "bench-check.json"
WORSE = 1.5  # times the recorded ratio
ELSEWHERE = 3.0  # the same on another processor, whose products may be quicker or slower
TRIES = 3
ROUNDS = 12
SECONDS = 6.0  # processor seconds of a comparison, about


def comparisons() -> Iterator[Comparison]:
    """Yield one small comparison a subject, without what only `make bench` installs."""
    filters = smooth(8000)
    ours = Arm("kf.match", lambda: kf.match(filters, null=None), len(filters))
    whole = Arm("one pass |X·D|", dictionary_pass(noise(4096)), 4096)
    yield _check("match", ours, whole)
    many = noise(40_000)
    keys = kf.KeySet.published("lindeberg2026-B")
    yield _check(
        "assignment",
        Arm("KeySet.assign", lambda: keys.assign(many), len(many)),
        Arm("one pass, 64 atoms", dictionary_pass(many, 64), len(many)),
    )
    gains = (unit_rows(noise(2000)) @ unit_rows(noise(40, seed=1)).T) ** 2
    yield _check(
        "discovery",
        Arm("eliminate", lambda: [eliminate(gains) for _ in range(10)], 10),
        Arm("the largest gains, by NumPy", lambda: [gains.argmax(1) for _ in range(300)], 300),
    )
    weights = {f"{i}.weight": torch.from_numpy(noise(64)[:, None]) for i in range(300)}
    yield _check(
        "reading",
        Arm("kf.read", lambda: kf.read(weights)),
        Arm("a copy", lambda: [{k: w.clone() for k, w in weights.items()} for _ in range(20)], 20),
    )
    model = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 7, groups=64) for _ in range(4)))
    watch = kf.Monitor(model, every=100)
    images = torch.randn(2, 64, 32, 32)
    yield _check(
        "monitor",
        Arm("kf.Monitor.measure", lambda: watch.measure(len(watch.history))),
        Arm("four layers, back and forth", lambda: [_step(model, images) for _ in range(4)], 4),
    )
    unit = unit_rows(smooth(400, 5))
    curve = PrincipalCurve(steps=40)
    yield _check("curve", Arm("PrincipalCurve", lambda: curve.fit(unit)), whole)


def _step(model: torch.nn.Module, images: torch.Tensor) -> None:
    model.zero_grad()
    model(images).square().sum().backward()


def _check(subject: str, ours: Arm, rival: Arm) -> Comparison:
    return Comparison(subject, "", "item", ours, (rival,), rounds=ROUNDS, seconds=SECONDS)


def measure(comparison: Comparison) -> float:
    """Return the least of our processor seconds as a multiple of the least of the rival's."""
    clocks = Clocks(wall=time.process_time)  # which ends the rounds: those of a busy machine too
    times = interleave(comparison, clocks).processor
    return min(times[comparison.ours.name]) / min(times[comparison.rivals[0].name])


def verdict(comparison: Comparison, recorded: float, allowed: float) -> tuple[float, bool]:
    """Measure until the ratio is near the recorded one, three times at most.

    Returns:
        The smallest ratio, and whether it is at most `allowed` times the recorded one.
    """
    least = float("inf")
    for _ in range(TRIES):
        least = min(least, measure(comparison))
        if least <= allowed * recorded:
            break
    return least, least <= allowed * recorded


def record(path: Path = RECORDED) -> None:
    """Write the ratios of now: medians of three measurements."""
    torch.set_num_threads(1)
    with one_thread():
        found = {
            c.subject: float(np.median([measure(c) for _ in range(TRIES)])) for c in comparisons()
        }
    text = json.dumps({"processor": processor(), "ratios": found}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def check(path: Path = RECORDED) -> bool:
    """Compare with what was recorded, and say what is worse."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    same = recorded["processor"] == processor()
    allowed = WORSE if same else ELSEWHERE
    if not same:
        print(f"recorded on {recorded['processor']}, here is {processor()}: {allowed:g} times "
              "worse is allowed")  # fmt: skip
    torch.set_num_threads(1)
    good = True
    with one_thread():
        for comparison in comparisons():
            before = recorded["ratios"][comparison.subject]
            now, fine = verdict(comparison, before, allowed)
            good = good and fine
            print(f"{'ok   ' if fine else 'WORSE'} {comparison.subject}: {now / before:.2f} times "
                  f"the recorded ratio, {allowed:g} allowed", flush=True)  # fmt: skip
    return good


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.check", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the ratios of now instead")
    if parser.parse_args().record:
        record()
    elif not check():
        sys.exit(
            "slower than recorded; if that is meant: python -m benchmarks.bench.check --record"
        )


if __name__ == "__main__":
    main()

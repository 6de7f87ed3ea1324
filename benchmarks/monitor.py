"""What `Monitor` costs: one measurement beside one training step of ConvNeXt V2 atto.

About 2 minutes on two cores. Writes results/monitor.md and results/monitor.json.

    python benchmarks/monitor.py [--batch 32] [--steps 5]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import pandas as pd
import timm
import torch
from common import environment, markdown, write

import keyfilters as kf

EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    monitor = kf.Monitor(model, every=EVERY)
    images, labels = torch.randn(given.batch, 3, 224, 224), torch.randint(0, 1000, (given.batch,))
    steps, measures = [], []
    for i in range(given.steps + 1):
        started = time.process_time(), time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps.append((time.process_time() - started[0], time.perf_counter() - started[1]))
        started = time.process_time(), time.perf_counter()
        monitor.measure(i + 1)
        measures.append((time.process_time() - started[0], time.perf_counter() - started[1]))
    rows = []
    for kind, at in (("processor seconds", 0), ("seconds", 1)):
        step = median(x[at] for x in steps[1:])
        cost = median(x[at] for x in measures[1:])
        rows.append(
            {
                "": kind,
                "one training step": round(step, 3),
                "one measurement": round(cost, 3),
                f"cost of a step at every={EVERY}": cost / EVERY / step,
            }
        )
    table = markdown(pd.DataFrame(rows), percent=(f"cost of a step at every={EVERY}",))
    least = rows[1]["one measurement"] / EVERY / 0.02
    text = (
        f"Medians of {given.steps} after a warm-up; batch {given.batch} at 224 × 224, float32. "
        f"A measurement costs the same whatever the step: it stays below 2 % of steps that take "
        f"{1000 * float(least):.0f} ms or more.\n\n{table}"
    )
    about = environment()
    write("monitor", "What monitoring costs", about, rows, {"ConvNeXt V2 atto": text})


if __name__ == "__main__":
    main()

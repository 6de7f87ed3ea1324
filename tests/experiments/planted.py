"""Tables of runs whose differences are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SEEDS = 5


def planted(
    out: Path,
    means: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]],
    spread: float = 0.1,
    **results: Mapping[str, Any],
) -> pd.DataFrame:
    """Return a table of runs, and write their results into a folder.

    Args:
        out: folder of the grid.
        means: condition → mean of top1; seeds differ alike in all conditions, and by `spread`.
        options: condition → its options.
        spread: standard deviation within a seed.
        results: further columns, condition → value, or function of the seed; lists go to the files.
    """
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(SEEDS):
        level = generator.normal(0, 2)
        for condition, mean in means.items():
            folder = f"runs/{len(rows)}"
            row: dict[str, Any] = {"condition": condition, "seed": seed, "status": "done"}
            row |= {f"options.{key}": value for key, value in options[condition].items()}
            row |= {"top1": mean + level + generator.normal(0, spread), "folder": folder}
            lists: dict[str, Any] = {"curve": [row["top1"]]}
            for name, by_condition in results.items():
                if condition in by_condition:
                    value = by_condition[condition]
                    value = value(seed) if callable(value) else value
                    (lists if isinstance(value, list) else row)[name] = value
            (out / folder).mkdir(parents=True)
            (out / folder / "result.json").write_text(json.dumps({"result": lists}))
            rows.append(row)
    return pd.DataFrame(rows)

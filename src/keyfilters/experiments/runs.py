"""What is asked of a run: its condition, seed and options, and where it lies on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from keyfilters.errors import KeyFiltersError

__all__ = ["Run", "grid"]

SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9+])?")


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        condition: its name in tables and figures.
        seed: 0 or more.
        options: what the function is given; JSON only, so that it can be written down.

    Raises:
        KeyFiltersError: an empty condition, a seed below 0, or options that are no JSON.

    >>> Run("center-surround", 3, {"epochs": 5}).folder
    PurePosixPath('runs/center-surround/seed-3')
    >>> print(Run("lr 1e-3 / frozen", 0).folder)
    runs/lr_1e-3_frozen-2af3a5c6/seed-0
    """

    condition: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.condition or self.seed < 0:
            got = f"condition {self.condition!r}, seed {self.seed}"
            raise KeyFiltersError(f"{got}; a name and a seed of 0 or more are expected")
        try:
            plain = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise KeyFiltersError(f"options of {self} are no JSON: {error}") from error
        object.__setattr__(self, "options", plain)

    def __str__(self) -> str:
        return f"{self.condition}, seed {self.seed}"

    @property
    def folder(self) -> PurePosixPath:
        """Folder inside the grid's; of a name unsafe on disk a simpler one and a hash."""
        name = self.condition
        if not SAFE.fullmatch(name):
            simple = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:40].strip("._-") or "condition"
            name = f"{simple}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return PurePosixPath("runs", name, f"seed-{self.seed}")


def grid(
    conditions: Mapping[str, Mapping[str, Any]], seeds: Iterable[int], **common: Any
) -> list[Run]:
    """Return the runs of all conditions with all seeds, seed by seed.

    In this order an interrupted grid holds whole seeds, whose conditions can be compared.

    Args:
        conditions: name → options that differ from condition to condition.
        seeds: the same for every condition.
        common: options of all runs.

    >>> [str(run) for run in grid({"A": {"lr": 1}, "B": {"lr": 2}}, range(2), epochs=5)]
    ['A, seed 0', 'B, seed 0', 'A, seed 1', 'B, seed 1']
    """
    return [
        Run(name, seed, {**common, **options})
        for seed in seeds
        for name, options in conditions.items()
    ]

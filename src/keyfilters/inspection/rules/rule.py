"""What a rule of `check` is: a measurement, a threshold and how often healthy models exceed it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keyfilters.inspection.layer_filters import LayerFilters

__all__ = ["Level", "Measured", "Rule"]

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What a rule measured.

    Attributes:
        value: number that is compared with the threshold.
        channels: filters of the layer that the value speaks of.
        null: the same number of filters without structure, where the rule has such a null.
    """

    value: float
    channels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    null: float | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of `check`.

    Attributes:
        name: what it finds, such as ``"dead"``.
        level: ``"error"`` (the model cannot work so), ``"warning"`` (no healthy model measured
            shows it) or ``"note"`` (healthy models may show it).
        measures: what is measured, in words, with its unit.
        threshold: a value above it is a finding.
        advice: what the finding may mean.
        layer: measures one layer; None where nothing can be said of it.
        model: measures all layers of a model, for a rule about models.
    """

    name: str
    level: Level
    measures: str
    threshold: float
    advice: str
    layer: Callable[[LayerFilters], Measured | None] | None = None
    model: Callable[[Sequence[LayerFilters]], Measured | None] | None = None

    @property
    def false_alarms(self) -> dict[str, float]:
        """Share of models with a finding: ``"healthy"`` trained ones, ``"untrained"`` ones.

        Measured by ``benchmarks/check.py``; empty for a rule that was not measured yet.
        """
        counts = _measured().get(self.name, {})
        return {kind: found / of for kind, (found, of) in counts.items()}


@cache
def _measured() -> dict[str, dict[str, tuple[int, int]]]:
    text = resources.files("keyfilters.inspection").joinpath("false_alarms.json").read_text("utf-8")
    return {
        name: {k: tuple(v) for k, v in kinds.items()} for name, kinds in json.loads(text).items()
    }

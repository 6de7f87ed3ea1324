"""The health of a model's depthwise filters: every rule, every layer, in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.inspection.layer_filters import LayerFilters, layers_by_model
from keyfilters.inspection.rules import RULES, Measured, Rule
from keyfilters.inspection.sarif import sarif
from keyfilters.sources import read
from keyfilters.threads import one_thread

__all__ = ["Check", "check"]

LEVELS = ("error", "warning", "note")
COLUMNS = (
    "rule",
    "level",
    "model",
    "layer",
    "filters",
    "channels",
    "measured",
    "threshold",
    "null",
    "message",
)


@dataclass(frozen=True, eq=False)
class Check:
    """What `check` found.

    Attributes:
        findings: one row a finding: rule, level (``"error"``, ``"warning"`` or ``"note"``), model,
            layer (empty for a rule about models), filters (their number in the layer), channels
            (list of those that the finding speaks of), measured (the value), threshold, null (the
            value of filters without structure, where the rule has one; NaN elsewhere), message.
        rules: the rules that were applied.
        bank: the filters.
    """

    findings: pd.DataFrame
    rules: tuple[Rule, ...]
    bank: FilterBank

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.findings["level"].isin(["error", "warning"]).any()

    @property
    def table(self) -> pd.DataFrame:
        """One row a rule: rule, level, findings, layers, measures, threshold, false alarms."""
        rows = []
        for rule in self.rules:
            found = self.findings[self.findings["rule"] == rule.name]
            rows.append(
                {
                    "rule": rule.name,
                    "level": rule.level,
                    "findings": len(found),
                    "models": found["model"].nunique(),
                    "measures": rule.measures,
                    "threshold": rule.threshold,
                    "healthy": rule.false_alarms.get("healthy", np.nan),
                    "untrained": rule.false_alarms.get("untrained", np.nan),
                }
            )
        return pd.DataFrame(rows)

    @property
    def worst(self) -> pd.DataFrame:
        """The finding with the largest value of each rule and model, errors first.

        Returns:
            The columns of ``findings``, and layers: the number of findings of this rule and model.
        """
        if self.findings.empty:
            return self.findings.assign(layers=0)
        groups = self.findings.groupby(["rule", "model"], sort=False)["measured"]
        rows = self.findings.loc[groups.idxmax()].assign(layers=groups.size().to_numpy())
        order = rows["level"].map(LEVELS.index)
        return rows.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)

    def __repr__(self) -> str:
        counts: dict[str, int] = self.findings["level"].value_counts().to_dict()
        found = ", ".join(
            f"{counts[level]} {level}{'s' * (counts[level] > 1)}"
            for level in LEVELS
            if level in counts
        )
        return f"Check({len(self.bank):,} filters, {len(self.rules)} rules: {found or 'nothing'})"

    def _repr_html_(self) -> str:
        shown = self.worst[["rule", "level", "model", "layers", "layer", "measured", "message"]]
        return f"<p>{escape(repr(self))}</p>{shown.to_html(index=False)}"

    def to_json(self) -> str:
        """Return the findings and the rules as JSON text, in ASCII: names may steer a terminal."""
        told = self.findings.replace({np.nan: None})
        rules = self.table.replace({np.nan: None})
        data = {
            "ok": self.ok,
            "findings": told.to_dict("records"),
            "rules": rules.to_dict("records"),
        }
        return json.dumps(data, indent=1, allow_nan=False)

    def to_sarif(self) -> str:
        """Return the findings as SARIF 2.1.0, which code hosts show beside a change."""
        return json.dumps(sarif(self.findings, self.rules), indent=1)


@one_thread()
def check(source: Any, *, off: Iterable[str] = (), seed: int = 0) -> Check:
    """Check the health of a model's depthwise filters.

    Every rule measures one number of a layer or a model and compares it with its threshold; see
    `Check.table` for what it measures and how many healthy and untrained models exceed it.

    Args:
        source: a `FilterBank`, or whatever `keyfilters.read` takes.
        off: names of rules not to apply.
        seed: of the null filters, and of models that are read without pretrained weights.

    Returns:
        The findings.

    Raises:
        KeyFiltersError: an unknown rule, or a source that cannot be read.

    >>> from torch import nn
    >>> check(nn.Conv2d(64, 64, 7, groups=64)).findings["rule"].tolist()
    ['untrained', 'untrained-layer']
    """
    skipped = set(off)
    for name in sorted(skipped - set(RULES)):
        known = ", ".join(RULES)
        raise KeyFiltersError(f"no rule {name!r}{nearest(name, RULES)}; the rules are {known}")
    rules = tuple(rule for name, rule in RULES.items() if name not in skipped)
    bank = source if isinstance(source, FilterBank) else read(source, seed=seed)
    rows: list[dict[str, Any]] = []
    for model, layers in layers_by_model(bank, seed):
        for rule in rules:
            rows += _findings(rule, model, layers)
    return Check(pd.DataFrame(rows, columns=list(COLUMNS)), rules, bank)


def _findings(rule: Rule, model: str, layers: Sequence[LayerFilters]) -> list[dict[str, Any]]:
    found: list[tuple[str, int, Measured | None]] = []
    if rule.model is not None:
        found.append(("", sum(map(len, layers)), rule.model(layers)))
    if rule.layer is not None:
        found += [(layer.layer.name, len(layer), rule.layer(layer)) for layer in layers]
    return [
        {
            "rule": rule.name,
            "level": rule.level,
            "model": model,
            "layer": name,
            "filters": count,
            "channels": measured.channels.tolist(),
            "measured": measured.value,
            "threshold": rule.threshold,
            "null": np.nan if measured.null is None else measured.null,
            "message": f"{rule.measures}: {measured.value:.3g} > {rule.threshold:g}; {rule.advice}",
        }
        for name, count, measured in found
        if measured is not None and measured.value > rule.threshold
    ]

"""Findings as SARIF 2.1.0, the static analysis results interchange format."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import pandas as pd

from keyfilters.inspection.rules import Rule

__all__ = ["sarif"]

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def sarif(findings: pd.DataFrame, rules: Sequence[Rule]) -> dict[str, Any]:
    """Return a SARIF log with one run.

    Args:
        findings: as of `keyfilters.inspection.Check`.
        rules: those that were applied.
    """
    driver = {
        "name": "keyfilters",
        "version": importlib.metadata.version("keyfilters"),
        "rules": [_rule(rule) for rule in rules],
    }
    index = {rule.name: i for i, rule in enumerate(rules)}
    results = [_result(row, index[row["rule"]]) for row in findings.to_dict("records")]
    run = {"tool": {"driver": driver}, "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.name,
        "shortDescription": {"text": rule.measures},
        "help": {"text": rule.advice},
        "defaultConfiguration": {"level": rule.level},
        "properties": {"threshold": rule.threshold, "falseAlarms": rule.false_alarms},
    }


def _result(row: dict[str, Any], rule_index: int) -> dict[str, Any]:
    name = "/".join(filter(None, (row["model"], row["layer"])))
    return {
        "ruleId": row["rule"],
        "ruleIndex": rule_index,
        "level": row["level"],
        "message": {"text": f"{name}: {row['message']}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(row["model"])}},
                "logicalLocations": [{"fullyQualifiedName": name, "kind": "module"}],
            }
        ],
        "properties": {"measured": row["measured"], "channels": row["channels"]},
    }


def _uri(model: str) -> str:
    from urllib.parse import quote

    return quote(model)

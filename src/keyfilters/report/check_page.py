"""The health of a model, as one self-contained HTML page: every finding and its filters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keyfilters.environment import environment
from keyfilters.inspection import Check
from keyfilters.inspection.check import LEVELS
from keyfilters.report.template import render, write_page
from keyfilters.thumbnails import filter_image, picture_size

__all__ = ["write_check_report"]

LAYERS = 8  # of a rule and model whose filters are drawn, those with the largest values
FILTERS = 24  # of each


def write_check_report(found: Check, path: str | os.PathLike[str], *, command: str = "") -> Path:
    """Write the page of a check: a file that opens without a network.

    Args:
        found: of `keyfilters.check`.
        path: where to; the folder is made if need be.
        command: what to type for the same result, if it was a command.

    Returns:
        The path written.
    """
    models = found.bank.models
    html = render(
        "check.html.j2",
        title=models[0] if len(models) == 1 else f"{len(models)} models",
        found=found,
        several=len(models) > 1,
        counts={level: int((found.findings["level"] == level).sum()) for level in LEVELS},
        groups=[_group(found, row) for row in found.worst.to_dict("records")],
        rules=found.table.to_dict("records"),
        command=command,
        run=environment(),
    )
    return write_page(html, path)


def _group(found: Check, worst: dict[str, Any]) -> dict[str, Any]:
    """What one rule found in one model, the layers with the largest values first."""
    rule = next(rule for rule in found.rules if rule.name == worst["rule"])
    table = found.findings
    table = table[(table["rule"] == worst["rule"]) & (table["model"] == worst["model"])]
    rows = table.sort_values("measured", ascending=False, kind="stable").to_dict("records")
    for i, row in enumerate(rows):
        row["pictures"] = _pictures(found, row) if i < LAYERS else []
    return worst | {"measures": rule.measures, "advice": rule.advice, "rows": rows}


def _pictures(found: Check, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The first filters that a finding speaks of."""
    layers = [x for x in found.bank.layers if (x.model, x.name) == (row["model"], row["layer"])]
    return [
        {"channel": channel, "image": filter_image(layer.weight[channel])}
        | picture_size(layer.size, 36)
        for layer in layers[:1]
        for channel in row["channels"][:FILTERS]
    ]

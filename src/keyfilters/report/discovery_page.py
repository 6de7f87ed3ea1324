"""What was discovered, as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.discovery import Discovery
from keyfilters.environment import environment
from keyfilters.nulls import NULLS
from keyfilters.receptive_fields.families import family, formula_in
from keyfilters.report import discovery_charts as charts
from keyfilters.report.template import render, write_page
from keyfilters.thumbnails import filter_image, picture_size

__all__ = ["write_discovery_report"]

MEASURES = {
    "variance": "variance of the filters over their taps",
    "outputs": "variance of what the filters give on real images",
}
ASKED = {
    "variance": "lowers the share of the filters' variance that is explained",
    "outputs": "lowers the share that is kept of what the layers give on {images} images",
    "agreement": "changes the network's answers to {images} images",
    "accuracy": "costs accuracy on {images} labelled images",
}


def write_discovery_report(
    found: Mapping[str, Discovery], path: str | os.PathLike[str], *, command: str = ""
) -> Path:
    """Write the page of one or several discoveries: a file that opens without a network.

    For each: the keys, beside their idealised receptive fields; the curve of the elimination with
    what the same search finds in null filters; the candidates in the order in which they were
    dropped; which key serves how many filters, layer by layer or model by model; and how well.

    Args:
        found: discoveries by a name, such as ``"5×5"``.
        path: where to; the folder is made if need be.
        command: what to type for the same result, if it was a command.

    Returns:
        The path written.
    """
    sections = [_section(name, one) for name, one in found.items()]
    first = next(iter(found.values()))
    models = list(dict.fromkeys(m for one in found.values() for m in one.served["model"].unique()))
    html = render(
        "discovery.html.j2",
        title=models[0] if len(models) == 1 else f"{len(models)} models",
        sections=sections,
        models=models,
        how=ASKED[first.options["criterion"]].format(images=first.options["images"]),
        options=first.options,
        command=command,
        run=environment(),
    )
    return write_page(html, path)


def _section(name: str, one: Discovery) -> dict[str, Any]:
    r2 = one.served["r2"]
    return {
        "name": name,
        "count": len(one.served),
        "value": one.value,
        "words": one.words,
        "number": "" if one.number is None else one.number.words,
        "chance": one.chance if one.nulls else None,
        "null": NULLS[one.strictest] if one.nulls else "",
        "measure": MEASURES.get(one.options["criterion"], MEASURES["variance"]),
        "keys": _keys(one),
        "rounds": [_drops(one, number) for number in one.curve["round"].unique()],
        "good": float((r2 >= 0.64).mean()),
        "good_by_null": {null: float((x >= 0.64).mean()) for null, x in one.null_r2.items()},
        "median": float(r2.median()),
        "curve": charts.elimination(one),
        "gap": "" if one.number is None else charts.gap(one.number),
        "quality": charts.quality(one),
        "depth": charts.over_depth(one),
        "wide": one.served["model"].nunique() > 1,
        "models": charts.over_models(one) if one.served["model"].nunique() > 1 else "",
    }


def _keys(one: Discovery) -> list[dict[str, Any]]:
    """The keys, those that serve most filters first, each beside its idealised twin."""
    explainable = "family" in one.models
    twins = one.keys.idealised()[0].filters if explainable else one.keys.filters
    rows = []
    for i in charts.by_share(one):
        model = one.models.iloc[i]
        row = {"name": model["key"], "share": model["share"]}
        row["image"] = filter_image(one.keys.filters[i])
        row |= picture_size(one.keys.window, 70)
        if explainable:
            form = family(model["family"])
            scales = [model[c] for c in ("sigma_x", "sigma_y") if np.isfinite(model[c])]
            same = len(scales) == 2 and np.isclose(*scales)
            row |= {
                "twin": filter_image(twins[i]),
                "kind": form.kind,
                "formula": formula_in(form.name, one.keys.window),
                "sigma": ", ".join(f"{s:.2f}" for s in (scales[:1] if same else scales))
                + (f"; second {model['second']:.2f}" if np.isfinite(model["second"]) else ""),
                "r2": model["r2"],
            }
        rows.append(row)
    return rows


def _drops(one: Discovery, number: int) -> dict[str, Any]:
    """The candidates of a round in the order in which they were dropped."""
    curve = one.curve[one.curve["round"] == number]
    pool = one.pools[number - 1]
    rows = [
        {
            "image": filter_image(pool.filters[row.number]),
            "name": pool.names[row.number],
            "left": row.keys,
            "value": row.value,
        }
        for row in curve.itertuples()
    ]
    return {
        "number": number,
        "rows": rows,
        "kept": len(one.keys),
        **picture_size(one.keys.window, 40),
    }

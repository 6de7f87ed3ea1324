"""The atlas as one self-contained HTML page."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.claims import LEVEL
from keyfilters.clusters import Atlas, SizeAtlas
from keyfilters.clusters.methods import ONE_DIMENSION
from keyfilters.clusters.principal_curve import distinct_prototypes
from keyfilters.nulls import NULLS
from keyfilters.report import figures, model_figures
from keyfilters.report.drawing import KIND_COLOURS
from keyfilters.report.payload import KEY_SETS, build_payload
from keyfilters.report.template import asset, render, script_json, write_page

__all__ = ["render_report", "write_report"]

MOST_MODELS = 8  # drawn in one chart; the rest is in the table
MOST_ROWS = 2000  # of a table of layers


def write_report(atlas: Atlas, path: str | os.PathLike[str], *, command: str = "") -> Path:
    """Write the page of a fitted atlas: one file that opens from disk without a network.

    Args:
        atlas: a fitted atlas.
        path: the file to write; missing folders are created.
        command: the command that makes this page, to be shown on it.

    Returns:
        The path written.
    """
    return write_page(render_report(atlas, command=command), path)


def render_report(atlas: Atlas, *, command: str = "") -> str:
    """Return the page as HTML text, see `write_report`."""
    payload = build_payload(atlas)
    models = atlas.bank_.models
    return render(
        "page.html.j2",
        title=models[0] if len(models) == 1 else f"{len(models)} models",
        summary=atlas.summary_,
        bank=atlas.bank_,
        headline=_headline(atlas),
        sizes=[_size_context(atlas, atlas.sizes_[size]) for size in _largest_first(atlas)],
        kinds=KIND_COLOURS,
        nulls=NULLS,
        layers=_layer_table(atlas)[:MOST_ROWS],
        shown_layers=len(payload["layers"]),
        skipped=_grouped(atlas.bank_.skipped),
        unusable=_flaw_table(atlas)[:MOST_ROWS],
        shown=payload["shown"],
        command=command,
        js=asset("page.js"),
        data=script_json({"atlas": payload, "colours": KIND_COLOURS}),
    )


def _largest_first(atlas: Atlas) -> list[tuple[int, int]]:
    """Kernel sizes in the order of the page: the larger the window, the more a shape can say."""
    return sorted(atlas.sizes_, key=lambda size: -size[0] * size[1])


def _headline(atlas: Atlas) -> list[dict[str, str]]:
    """One tile a kernel size: what is classified, and beside it what chance gives."""
    claims = atlas.claims_.set_index(["size", "claim"])
    tiles = []
    for size in _largest_first(atlas):
        kernel = f"{size[0]}×{size[1]}"
        row = claims.loc[(kernel, f"coverage, {ONE_DIMENSION}")]
        tiles.append(
            {
                "size": kernel,
                "classified": f"{row['value']:.0%}",
                "chance": f"{row['chance']:.0%}",
                "null": NULLS[row["strictest"]],
                "filters": f"{len(atlas.sizes_[size].rows):,}",
            }
        )
    return tiles


def _size_context(atlas: Atlas, size: SizeAtlas) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for layer, count in zip(atlas.bank_.layers, np.bincount(size.layers), strict=False):
        counts[layer.model] += int(count)
    models = [model for model, count in counts.most_common() if count]
    ordered = [model for model in atlas.bank_.models if model in models[:MOST_MODELS]]
    patterns = size.patterns.table
    by_name = patterns.groupby(["name", "kind"], sort=False)["share"].sum().reset_index()
    return {
        "label": f"{size.size[0]}×{size.size[1]}",
        "threshold": size.threshold,
        "count": len(size.rows),
        "patterns": len(patterns),
        "names": by_name.sort_values("share", ascending=False).head(6).to_dict("records"),
        "words": atlas.words_[size.size],
        "squares": size.squares["words"],
        "agreement": size.agreement.reset_index(names="data").to_dict("records"),
        "seeds": atlas.seeds,
        "distinct": distinct_prototypes(size.decoded),
        "name_bar": atlas.summary_["sizes"][f"{size.size[0]}×{size.size[1]}"][
            "similarity_of_chance_names"
        ],
        "claims": _claim_rows(atlas, size),
        "keys": _keys_context(size),
        "no_keys": [name for name in KEY_SETS if name not in size.keys],
        "models_left_out": len(models) - len(ordered),
        "explained": _explained_context(atlas, size, ordered),
        "coverage_bars": figures.coverage_bars(size),
        "rate_curve": figures.rate_curve(size),
        "sweep": figures.sweep(size),
        "depth_profiles": figures.depth_profiles(atlas, size.size, ordered),
        "layer_coverage": figures.layer_coverage(atlas, size.size, ordered),
    }


def _claim_rows(atlas: Atlas, size: SizeAtlas) -> list[dict[str, Any]]:
    """Claims of one kernel size, with the number of prototypes where a method has one."""
    table = atlas.claims_[atlas.claims_["size"] == f"{size.size[0]}×{size.size[1]}"]
    return [
        row
        | {
            "prototypes": size.evidence.prototypes.get(row["claim"].removeprefix("coverage, ")),
            "beyond": row["q"] < LEVEL,
        }
        for row in table.to_dict("records")
    ]


def _keys_context(size: SizeAtlas) -> dict[str, dict[str, Any]]:
    """Where the keys of each set come from, and how well they explain filters and nulls."""
    return {
        name: {
            "provenance": use.keys.provenance,
            "count": len(use.keys),
            "quality": {row["data"]: row for row in use.quality.to_dict("records")},
        }
        for name, use in size.keys.items()
    }


def _explained_context(atlas: Atlas, size: SizeAtlas, models: list[str]) -> dict[str, Any] | None:
    if size.matched is None:
        return None
    return {
        "bar": size.matched.bar,
        "significant": size.matched.significant,
        "kinds": size.matched.shares.to_dict("records"),
        "left": size.matched.component_shares.tolist(),
        "share": model_figures.explained_share(size),
        "depth": model_figures.explained_depth(atlas, size.size, models),
        "scale": model_figures.scale_depth(atlas, size.size),
    }


def _layer_table(atlas: Atlas) -> list[dict[str, Any]]:
    """What was read, one row a layer, with its notes."""
    return [
        {
            "model": layer.model,
            "name": layer.name,
            "filters": len(layer.weight),
            "size": f"{layer.size[0]}×{layer.size[1]}",
            "stride": "×".join(map(str, layer.stride)) if layer.stride else "not stored",
            "note": layer.note,
        }
        for layer in atlas.bank_.layers
    ]


def _grouped(skipped: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What was not taken, grouped by reason, the most frequent first."""
    counts = Counter(reason for _, reason in skipped)
    return [
        {"reason": reason, "names": [name for name, other in skipped if other == reason]}
        for reason, _ in counts.most_common()
    ]


def _flaw_table(atlas: Atlas) -> list[dict[str, Any]]:
    """Filters without a shape, grouped by layer and flaw."""
    keys = ["model", "layer", "flaw"]
    groups = atlas.unusable_.groupby(keys, sort=False, observed=True)["channel"]
    return [
        {"model": model, "layer": layer, "flaw": flaw, "channels": channels.tolist()}
        for (model, layer, flaw), channels in groups
    ]

"""All figures of an atlas as plain data, as they are saved."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from keyfilters.clusters.key_use import KeyUse
from keyfilters.clusters.matched import Matched
from keyfilters.clusters.naming import chance_similarity
from keyfilters.clusters.principal_curve import distinct_prototypes
from keyfilters.environment import environment

if TYPE_CHECKING:
    from keyfilters.clusters.atlas import Atlas
    from keyfilters.clusters.size_atlas import SizeAtlas

__all__ = ["summarise"]


def summarise(atlas: Atlas, seconds: float) -> dict[str, Any]:
    """Return all figures of a fitted atlas, and what they were computed with, as plain data."""
    flaws = atlas.unusable_["flaw"].value_counts()
    return _plain(
        {
            "keyfilters": version("keyfilters"),
            "config": atlas.get_params(),
            "models": atlas.bank_.models,
            "layers": len(atlas.bank_.layers),
            "filters": len(atlas.bank_),
            "unusable": {k: int(n) for k, n in flaws.items()},
            "skipped": len(atlas.bank_.skipped),
            "unclustered": {f"{y}×{x}": why for (y, x), why in atlas.unclustered_.items()},
            "sizes": {
                f"{size[0]}×{size[1]}": _summary_of(a, atlas.words_[size])
                for size, a in atlas.sizes_.items()
            },
            "claims": atlas.claims_.to_dict("records"),
            "coverage": atlas.coverage_.to_dict("records"),
            "run": {"seconds": round(seconds, 1), **environment()},
        }
    )


def _summary_of(atlas: SizeAtlas, words: dict[str, str]) -> dict[str, Any]:
    return {
        "usable": len(atlas.rows),
        "threshold": atlas.threshold,
        "words": words,
        "distinct_prototypes_of_code": distinct_prototypes(atlas.decoded),
        "similarity_of_chance_names": chance_similarity(atlas.size),
        "rate": atlas.evidence.rate.to_dict("records"),
        "sweep": atlas.evidence.sweep.to_dict("records"),
        "agreement": atlas.agreement.to_dict("index"),
        "squares": atlas.squares,
        "patterns": atlas.patterns.table.drop(columns="atom").to_dict("records"),
        "explained": None if atlas.matched is None else _summary_of_models(atlas.matched),
        "keys": {name: _summary_of_keys(use) for name, use in atlas.keys.items()},
    }


def _summary_of_models(matched: Matched) -> dict[str, Any]:
    return {
        "bar": matched.bar,
        "share": float((matched.table["r2"] >= matched.bar).mean()),
        "significant": matched.significant,
        "nulls": {name: float((r2 >= matched.bar).mean()) for name, r2 in matched.nulls.items()},
        "kinds": matched.shares.to_dict("records"),
        "left_over": matched.component_shares.tolist(),
    }


def _summary_of_keys(use: KeyUse) -> dict[str, Any]:
    return {
        "provenance": use.keys.provenance,
        "explained": use.claim.value,
        "nulls": use.claim.nulls,
        "quality": use.quality.to_dict("records"),
        "keys": use.table.to_dict("records"),
    }


def _plain(value: Any) -> Any:
    """Turn nested data into what JSON knows; NaN becomes None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value

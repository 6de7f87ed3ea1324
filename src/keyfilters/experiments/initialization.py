"""Does starting from biological filters help? The experiment of babaiee2024echos, with controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.asked import parse
from keyfilters.experiments.findings import Findings, in_short, table_of, verdicts
from keyfilters.experiments.results import read_curves
from keyfilters.experiments.runner import run_grid
from keyfilters.experiments.runs import grid
from keyfilters.experiments.statistics import epochs_to_reach, summarise
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure
from keyfilters.sources import read
from keyfilters.surgery import initialize_filters_

__all__ = ["CONDITIONS", "REFERENCES", "SIZES", "condition_name", "findings", "initialization"]

SIZES = (3, 5, 7)
CONDITIONS = (
    "default",
    "kaiming",
    "trunc-normal",
    "covariance",
    "center-surround",
    "center-surround?std=keep",
    "impulse",
    "keys",
)
REFERENCES = ("default", "kaiming", "trunc-normal", "covariance")  # what a gain must exceed
LENT = "idealized"  # the scheme that draws from trained filters


def initialization(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    sizes: Sequence[int] = SIZES,
    conditions: Sequence[str] = CONDITIONS,
    seeds: Sequence[int] = range(5),
    setup: Setup | None = None,
    bank: str = "",
    workers: int | None = None,
    progress: Callable[[str], object] | None = None,
) -> pd.DataFrame:
    """Train a network from different first depthwise filters, everything else alike.

    Runs of one seed share the first weights of all other layers, the training images and their
    order, so that their differences are paired.

    Args:
        out: folder of the runs; the same call goes on there.
        data: as `keyfilters.experiments.trial.load` takes it.
        sizes: kernel sizes.
        conditions: initialisations of `keyfilters.initialize_filters_` with their options, such as
            ``"center-surround?std=keep&gammas=0.5"``; ``"default"`` leaves the network as built.
        seeds: of the runs; those that share one are compared in pairs.
        setup: what all runs share; its size does not count.
        bank: source of trained filters, for the condition ``"idealized"``.
        workers: runs at a time.
        progress: called with words as the runs end.

    Returns:
        The table of `keyfilters.experiments.run_grid`, with conditions such as
        ``"7×7 center-surround"``.

    Raises:
        KeyFiltersError: an unknown condition or option, or data that cannot be had; before any run.
    """
    setup = setup or Setup()
    if not sizes or not conditions:
        raise KeyFiltersError("give at least one kernel size and one condition")
    _try(setup, data, sizes, conditions, bank)
    runs = grid(
        {
            condition_name(size, condition): {
                **setup.to_dict(),
                "data": data,
                "size": size,
                "initialization": condition,
                "bank": bank if parse(condition)[0] == LENT else "",
            }
            for size in sizes
            for condition in conditions
        },
        seeds,
    )
    return run_grid(runs, train_from, out, workers=workers, progress=progress)


def condition_name(size: int, condition: str) -> str:
    """Name of a condition in tables.

    >>> condition_name(7, "center-surround?std=keep")
    '7×7 center-surround, std=keep'
    """
    return f"{size}×{size} {condition.replace('?', ', ').replace('&', ', ')}"


def train_from(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run: build, initialise, train, measure."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    rms = start(network, options["initialization"], options["bank"], seed)
    return {**train_and_measure(setup, network, data, seed, folder), "rms": rms}


def start(network: Any, condition: str, bank: str, seed: int) -> float:
    """Initialise the depthwise filters; return their root mean square, the median over layers."""
    scheme, options = parse(condition)
    if scheme == "default" and not options:
        layers = read(network).layers
        return float(pd.Series([(layer.weight**2).mean() ** 0.5 for layer in layers]).median())
    given: dict[str, Any] = options
    if scheme == LENT:
        given = {**options, "bank": _bank(bank)}
    return float(initialize_filters_(network, scheme, seed=seed, **given)["rms_after"].median())


def _bank(source: str) -> FilterBank:
    if not source:
        raise KeyFiltersError(f"the condition {LENT!r} needs a bank of trained filters; give one")
    return read(source)


def _try(
    setup: Setup, data: str, sizes: Sequence[int], conditions: Sequence[str], bank: str
) -> None:
    """Refuse what cannot work before the first run."""
    images = load(data, setup, 0)
    for size in sizes:
        for condition in conditions:
            asked = Setup.from_dict({**setup.to_dict(), "size": size})
            start(build_network(asked, images, 0), condition, bank, 0)


EXPLANATION = (
    "A network of depthwise convolutions starts from random filters and learns edges, centres and "
    "bars. Does it learn better or faster if it starts from filters like those of the retina, "
    "bright centres with dark surrounds and the opposite (babaiee2024echos)? The same network is "
    "trained from several first filters; all else, the first weights of the other layers, the "
    "images and their order, is the same for runs of one seed. Std=keep gives the same filters the "
    "size of the network's own first weights, so that shape and size can be told apart."
)
NEW = "center-surround"
REACHED = 0.95  # of the default's final accuracy


def findings(table: pd.DataFrame, out: str | os.PathLike[str]) -> Findings:
    """Say what a table of `initialization` supports.

    Compared are, for each kernel size, every center-surround condition with each of `REFERENCES`
    that has run: in final accuracy, and in epochs until the accuracy that is 95 % of the default's
    final one (or of the first reference there is); and the slope of the gain over the kernel size.

    Args:
        table: as returned.
        out: the folder of its runs, for the learning curves.
    """
    sizes = sorted({int(size) for size in table["options.size"]})
    asked = list(dict.fromkeys(table["options.initialization"]))
    new = [name for name in asked if parse(name)[0] == NEW]
    references = [name for name in REFERENCES if name in asked]
    pairs = [
        (condition_name(size, a), condition_name(size, b))
        for size in sizes
        for a in new
        for b in references
    ]
    conditions, comparisons = table_of(table, "top1", pairs)
    curves = read_curves(table, out, "curve")
    table = table.assign(epochs_needed=_epochs_needed(table, curves, references))
    _, sooner = table_of(table, "epochs_needed", pairs)
    told = verdicts(comparisons)
    speed = verdicts(sooner, unit="epochs", higher_is_better=False)
    answers = [
        (f"Does {a} beat {b} at {size}×{size}?", f"{told[pair]} Epochs to the mark: {speed[pair]}")
        for size in sizes
        for a in new
        for b in references
        if (pair := (condition_name(size, a), condition_name(size, b))) in told
    ]
    for a in new:
        for b in references[:1]:
            if len(sizes) > 1:
                question = f"Does the gain of {a} over {b} grow with the kernel?"
                answers.append((question, _slope(table, sizes, a, b)))
    matrix = conditions.set_index("condition")["mean"]
    by_size = pd.DataFrame(
        {
            f"{size}×{size}": [matrix.get(condition_name(size, name), nan) for name in asked]
            for size in sizes
        },
        index=pd.Index(asked, name="first filters"),
    )
    return Findings(
        title="Does starting from biological filters help?",
        explanation=EXPLANATION,
        short=in_short(comparisons),
        answers=answers,
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=conditions,
        comparisons=comparisons,
        curves=curves,
        matrices=[(by_size, "Mean accuracy in %, by kernel size.")],
    )


def _epochs_needed(
    table: pd.DataFrame, curves: Mapping[str, NDArray[np.float64]], references: Sequence[str]
) -> NDArray[np.float64]:
    """Epochs of every run until the mark of its kernel size; NaN where it was not reached."""
    needed = np.full(len(table), nan)
    for size in set(table["options.size"]):
        own = next((condition_name(size, name) for name in references), "")
        if own not in curves:
            continue
        mark = REACHED * float(np.nanmean(curves[own][:, -1]))
        for condition, runs in curves.items():
            rows = (table["condition"] == condition) & (table["options.size"] == size)
            rows &= table["status"] == "done"
            if rows.any():
                needed[rows.to_numpy()] = epochs_to_reach(runs, mark)
    return needed


def _slope(table: pd.DataFrame, sizes: Sequence[int], one: str, other: str) -> str:
    """Say how the difference of two initialisations changes with the kernel size."""
    wide = table.pivot(index="seed", columns="condition", values="top1")
    try:
        gains = [wide[condition_name(k, one)] - wide[condition_name(k, other)] for k in sizes]
    except KeyError:
        return "Not all kernel sizes have run."
    kept = pd.concat(gains, axis=1).dropna().to_numpy()
    if len(kept) < 3:
        return f"Too few seeds to say ({len(kept)}, at least 3 are needed)."
    slopes = np.polyfit(sizes, kept.T, 1)[0]
    frame = pd.DataFrame({"condition": "slope", "seed": range(len(slopes)), "value": slopes})
    row = summarise(frame, "value").iloc[0]
    told = (
        f"by {row['mean']:+.2f} points a tap (95 % interval {row['low']:+.2f} to "
        f"{row['high']:+.2f}, {len(slopes)} seeds)"
    ).replace("-", "−")
    if row["low"] > 0 or row["high"] < 0:
        trend = "" if len(slopes) >= 5 else "Trend: "
        return f"{trend}The gain {'grows' if row['mean'] > 0 else 'falls'} {told}."
    return f"No such change found: it changes {told}."

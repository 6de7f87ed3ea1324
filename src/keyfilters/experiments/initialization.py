"""Does starting from biological filters help? The experiment of babaiee2024echos, with controls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.runs import grid
from keyfilters.experiments.stages import How, run_stages
from keyfilters.experiments.trial import Setup, build_network, load, train_and_measure
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery import initialize_filters_

__all__ = ["CONDITIONS", "SIZES", "condition_name", "initialization"]

SIZES = (3, 5, 7)
CONDITIONS = (
    "default",
    "kaiming",
    "trunc-normal",
    "trunc-normal?std=keep",
    "covariance",
    "covariance?std=keep",
    "center-surround",
    "center-surround?std=keep",
    "impulse?std=keep",
    "keys?std=keep",
)
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
    **how: Unpack[How],
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
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid`, with conditions such as
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
    return run_stages([(runs, train_from)], out, how)[-1]


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
    if isinstance(options.get("gammas"), float):
        options["gammas"] = [options["gammas"]]
    if scheme == "default" and not options:
        layers = read(network).layers
        return float(pd.Series([(layer.weight**2).mean() ** 0.5 for layer in layers]).median())
    given: dict[str, Any] = options
    if scheme == LENT:
        given = {**options, "bank": _bank(bank)}
    try:
        return float(initialize_filters_(network, scheme, seed=seed, **given)["rms_after"].median())
    except TypeError as error:  # a text where a number belongs
        raise KeyFiltersError(f"the condition {condition!r} has a bad value: {error}") from error


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

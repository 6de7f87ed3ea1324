"""Does a network learn as well with eight frozen keys? The training of babaiee2025quest.

Controls decide what an answer means: filters that are learned, eight random keys used in the same
way, and the network's own random first filters, frozen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.lending import MODEL, lent
from keyfilters.experiments.on_keys import Treatment
from keyfilters.experiments.runs import Run
from keyfilters.experiments.stages import How, run_stages
from keyfilters.experiments.trial import (
    Setup,
    build_network,
    check_batch,
    load,
    train_and_measure,
)
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery import transfer_filters_
from keyfilters.training.results import write_weights

__all__ = ["CONDITIONS", "LEARNED", "condition_name", "frozen_keys"]

LEARNED, FIRST = "learned", "frozen"
CONDITIONS = (
    LEARNED,
    "keys?drawn=1",
    "keys?drawn=1&learn=bias",
    "keys",
    "keys?learn=bias",
    "keys?keys=random",
    "keys?keys=random&drawn=1",
    "keys?keys=random&drawn=1&learn=bias",
    FIRST,
)


def frozen_keys(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    samples: Sequence[int] = (0,),
    conditions: Sequence[str] = CONDITIONS,
    seeds: Sequence[int] = range(5),
    setup: Setup | None = None,
    steps: int = 0,
    **how: Unpack[How],
) -> pd.DataFrame:
    """Train networks whose depthwise filters stay on a few keys, and what controls for it.

    A condition is a line as `keyfilters.experiments.on_keys.Treatment` reads it: ``"learned"``,
    ``"frozen"`` (the network's own random first filters), or ``"keys"`` with options. Keys that are
    not drawn for each channel at random are those nearest to the filters of a network that learned
    from the same images with the next seed: of it only keys, signs, a and b are taken.

    Args:
        out: folder of the runs; the same call, also with more seeds, goes on there.
        data: as `keyfilters.experiments.trial.load` takes it, without a number of samples.
        samples: numbers of training images; 0 takes all.
        conditions: as above.
        seeds: of the runs; those that share one are compared in pairs.
        setup: what all runs share.
        steps: of every run, whatever the number of images; 0 takes the setup's epochs.
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid`, with conditions such as ``"500 images: 8 keys, b learned"``.

    Raises:
        KeyFiltersError: a condition or data that cannot be had, before any run; or a network that
            others depend on could not be trained.
    """
    setup = setup or Setup()
    if not samples or not conditions:
        raise KeyFiltersError("give at least one number of training images and one condition")
    if len(samples) > 1 and 0 in samples:
        samples = [count or len(load(data, setup, 0).images) for count in samples]
    asked = {condition: Treatment.parse(condition) for condition in conditions}
    for count in samples:
        images = load(_part(data, count), setup, 0)
        check_batch(setup, images)
        for treatment in asked.values():
            treatment.apply_(build_network(setup, images, 0), setup.size, 0)
    shared = {**setup.to_dict(), "steps": steps}

    lenders: dict[tuple[int, int], Run] = {}
    wanted = []
    for seed in seeds:
        for count in samples:
            common = {**shared, "data": _part(data, count), "samples": count}
            learning = {**common, "condition": LEARNED, "lender": "", "images_seed": seed}
            lender = Run(f"{condition_name(LEARNED, count)}, lender", seed + 1, learning)
            for condition, treatment in asked.items():
                options = {**common, "condition": condition, "lender": ""}
                if treatment.nearest:
                    options["lender"] = str(lender.folder)
                    lenders[seed, count] = lender
                wanted.append(Run(condition_name(condition, count), seed, options))
    stages = [(list(lenders.values()), train_on_keys), (wanted, train_on_keys)]
    return run_stages(stages, out, how)[-1]


def condition_name(condition: str, samples: int) -> str:
    """Name of a condition in tables.

    >>> condition_name("keys?keys=random&drawn=1&learn=bias", 500)
    '500 images: 8 random keys, drawn, b learned'
    >>> condition_name("frozen", 0), condition_name("keys", 0)
    ('random first filters, frozen', '8 idealised keys, as trained, frozen')
    """
    words = str(Treatment.parse(condition)).replace("nearest", "as trained")
    if condition == FIRST:
        words = "random first filters, frozen"
    return f"{samples} images: {words}" if samples else words


def train_on_keys(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run: build, put the filters on keys, train, measure."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, options.get("images_seed", seed))
    network = build_network(setup, data, seed)
    if options["lender"]:
        transfer_filters_(network, read(lent(folder, options["lender"])))
    finish = Treatment.parse(options["condition"]).apply_(network, setup.size, seed)
    result = train_and_measure(setup, network, data, seed, folder, steps=options["steps"])
    finish()
    write_weights(folder / MODEL, network)  # by their plain names
    return result


def _part(data: str, samples: int) -> str:
    if not samples:
        return data
    options = parse(data)[1]
    if "samples" in options:
        raise KeyFiltersError(f"{data!r} says how many images to take; samples says it too")
    return f"{data}{'&' if options else '?'}samples={samples}"

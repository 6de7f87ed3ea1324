"""What fine-tuning brings back after filters became keys: the experiment of lindeberg2026modelling.

A network is trained; its filters are replaced; the rest is tuned on. The paper takes keys and
factors from the trained network, but writes them into an early checkpoint and trains from there;
whether the early checkpoint itself would have told them is asked here too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from safetensors.torch import load_file

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
    measure,
    train_and_measure,
)
from keyfilters.sources import read
from keyfilters.surgery import transfer_filters_
from keyfilters.training.results import write_weights

__all__ = ["BEGUN", "EARLY", "LEARNED", "TRAINED", "TREATMENTS", "condition_name", "replacement"]

LEARNED = "learned"
TRAINED, EARLY = "trained", "early"
TREATMENTS = (
    LEARNED,
    "frozen",
    "idealized",
    "keys",
    "keys?learn=bias",
    "keys?learn=sigma",
    "keys?learn=bias,sigma",
    "keys?keys=random",
    "keys?keys=random&learn=bias",
)
BEGUN = (LEARNED, "keys", "keys?keys=random", "keys?drawn=1")


def replacement(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    treatments: Sequence[str] = TREATMENTS,
    begun: Sequence[str] = BEGUN,
    seeds: Sequence[int] = range(5),
    setup: Setup | None = None,
    tuning_epochs: float = 3,
    tuning_lr: float = 0.003,
    early: float = 0.1,
    **how: Unpack[How],
) -> pd.DataFrame:
    """Train, replace the filters in several ways, measure, tune the rest, measure again.

    Args:
        out: folder of the runs; the same call, also with more seeds, goes on there.
        data: as `keyfilters.experiments.trial.load` takes it.
        treatments: what is done to the trained network before it is tuned, as
            `keyfilters.experiments.on_keys.Treatment` reads it.
        begun: what is done to the early checkpoint, which is then trained as long as it lacks;
            treatments that depend on filters are done by those of the trained network, and by the
            checkpoint's own.
        seeds: of the runs; those that share one start from the same trained network.
        setup: what all runs share.
        tuning_epochs: passes over the training images after the replacement.
        tuning_lr: learning rate of them.
        early: share of the training after which the early checkpoint is taken.
        how: workers, progress and executor of `keyfilters.experiments.run_grid`.

    Returns:
        The table of `run_grid`: first the networks as trained, then those treated, whose result
        holds also `before` (top-1 accuracy in % before tuning); see `condition_name`.

    Raises:
        KeyFiltersError: a treatment or data that cannot be had, or a number out of its range,
            before any run; or a network could not be trained.
    """
    setup = setup or Setup()
    if not 0 < early < 1:
        raise KeyFiltersError(f"early is {early}; a share between 0 and 1 is expected")
    Setup(epochs=tuning_epochs, lr=tuning_lr)  # refuses what is out of range
    images = load(data, setup, 0)
    check_batch(setup, images)
    for asked in dict.fromkeys((*treatments, *begun)):
        Treatment.parse(asked).apply_(build_network(setup, images, 0), setup.size, 0)
    steps = setup.recipe(0).steps(len(images.images))
    step = max(1, round(early * steps))
    shared = {**setup.to_dict(), "data": data}
    tuned = {"start": TRAINED, "steps": 0, "epochs": tuning_epochs, "lr": tuning_lr}
    resumed = {"start": EARLY, "steps": steps - step}
    conditions: list[dict[str, Any]]
    conditions = [{**tuned, "assigned": TRAINED, "treatment": asked} for asked in treatments]
    conditions += [
        {**resumed, "assigned": assigned, "treatment": asked}
        for asked in begun
        for assigned in ((TRAINED, EARLY) if Treatment.parse(asked).nearest else (EARLY,))
    ]
    learned, treated = [], []
    for seed in seeds:
        learned.append(Run(condition_name(LEARNED), seed, {**shared, "early_step": step}))
        for options in conditions:
            name = condition_name(options["treatment"], options["start"], options["assigned"])
            lent = {"lender": str(learned[-1].folder), "early_step": step}
            treated.append(Run(name, seed, {**shared, **options, **lent}))
    tables = run_stages([(learned, train_learned), (treated, tune_treated)], out, how)
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(Path(out) / "table.csv", index=False)
    return table


def condition_name(treatment: str, start: str = "", assigned: str = "") -> str:
    """Name of a condition in tables.

    >>> condition_name("learned"), condition_name("keys", "trained", "trained")
    ('trained', 'tuned: 8 idealised keys, nearest, frozen')
    >>> condition_name("keys", "early", "trained")
    'from early, by trained: 8 idealised keys, nearest, frozen'
    """
    if not start:
        return TRAINED
    if start == TRAINED:
        return f"tuned: {Treatment.parse(treatment)}"
    by = f", by {TRAINED}" if assigned == TRAINED else ""
    return f"from {EARLY}{by}: {Treatment.parse(treatment)}"


def train_learned(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run in which nothing is replaced; it leaves an early checkpoint too."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    return train_and_measure(setup, network, data, seed, folder, keep=[options["early_step"]])


def tune_treated(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run that starts from another network, with its filters replaced."""
    setup = Setup.from_dict(options)
    data = load(options["data"], setup, seed)
    network = build_network(setup, data, seed)
    early = f"step-{options['early_step']}.safetensors"
    files = {x: lent(folder, options["lender"], y) for x, y in ((TRAINED, MODEL), (EARLY, early))}
    network.load_state_dict(load_file(files[options["start"]]))
    if options["assigned"] != options["start"]:
        transfer_filters_(network, read(files[options["assigned"]]))
    finish = Treatment.parse(options["treatment"]).apply_(network, setup.size, seed)
    before = measure(network, data)["top1"]
    result = train_and_measure(setup, network, data, seed, folder, steps=options["steps"])
    finish()
    write_weights(folder / MODEL, network)  # by their plain names
    return {**result, "before": before}

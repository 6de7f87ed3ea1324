"""``keyfilters discover``: the few keys of which most filters are made."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyfilters.cli.common import (
    Address,
    CpusPerRun,
    Device,
    ExecutorName,
    Out,
    Seed,
    Sources,
    check_out,
    command_line,
    executor_of,
    folder_at_once,
    progress_bar,
    read_bank,
)
from keyfilters.cli.images import halves, labelled, refuse_count
from keyfilters.cli.tables import say, show, write_parquet
from keyfilters.errors import KeyFiltersError
from keyfilters.query_strings import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyfilters.bank import FilterBank
    from keyfilters.discovery import Discovery
    from keyfilters.sizes import Window

PROGRESS = ".unfinished-drops"
SHOWN = ("key", "share", "family", "sigma_x", "sigma_y", "second", "r2")


KernelSize = Annotated[
    str | None,
    typer.Option(
        help="Kernel size, such as 7 or 1x7 (rows x columns); default: each that has enough.",
        show_default=False,
    ),
]
KeyCount = Annotated[
    str, typer.Option(help="How many to keep; auto: the number of keys that the filters ask for.")
]
Candidates = Annotated[int, typer.Option(help="Candidates of a round.", min=2)]
Kinds = Annotated[
    str,
    typer.Option(
        help="Where candidates come from, with commas: code, lines, kmeans, idealized, random."
    ),
]
Rounds = Annotated[
    int, typer.Option(help="Rounds; from the second on around the survivors.", min=1)
]
CriterionName = Annotated[
    str,
    typer.Option(
        help="What dropping a candidate must hurt least: variance (of the filters); or of one "
        "timm: model, on --images: outputs (of layers), agreement (with its answers), accuracy."
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        help="Folder of images, or photos for those that scikit-image and scikit-learn bring, "
        "for the criteria that ask the model. No other images measure the result.",
        show_default=False,
    ),
]
Crops = Annotated[int, typer.Option(help="Crops to take from photos.", min=2)]
Balance = Annotated[
    bool, typer.Option(help="Let every model count alike, however many filters it has.")
]


def discover(
    context: typer.Context,
    source: Sources,
    size: KernelSize = None,
    keys: KeyCount = "auto",
    candidates: Candidates = 50,
    kinds: Kinds = "code,lines,idealized",
    rounds: Rounds = 2,
    criterion: CriterionName = "variance",
    images: Images = None,
    count: Crops = 56,
    balance: Balance = False,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
    executor: ExecutorName = "",
    address: Address = "",
    cpus_per_run: CpusPerRun = 1,
) -> None:
    """Discover key filters: candidates are dropped one by one, the least missed first.

    With --out, writes report.html (the page), and for each kernel size K (7, or 1x7) the files
    keys_K.safetensors and keys_K.txt (which `keyfilters replace --keys` reads), curve_K.csv,
    models_K.csv and served_K.parquet, and discovery.png; the criteria that ask the network note
    every drop there, so that the same command goes on where it was cut off. For --criterion
    accuracy, --images is a folder with one folder a class, named by the number that the model gives
    it, or as many as it has classes. Only what asks the network is computed on --device.
    """
    import keyfilters as kf
    from keyfilters.sizes import extent, parse_size

    check_out(out)
    wanted = whole_number(keys)
    if keys != "auto" and wanted is None:
        raise KeyFiltersError(f"--keys {keys}: expected a number or auto")
    if size is not None:
        parse_size(size)  # before anything is read
    chosen = [kind.strip() for kind in kinds.split(",")]
    found = {}
    where = executor_of(executor, address, cpus_per_run)
    refuse_count(context, images)
    options = _asked(criterion, source, images, count, seed, device)
    with progress_bar() as step:
        bank = read_bank(source, out, seed, where, step)
        for window in _sizes(bank, size, candidates):
            found[window] = kf.discover_keys(
                bank, size=window, keys=wanted, count=candidates, kinds=chosen, rounds=rounds,
                balance=balance, criterion=criterion, **options, seed=seed,
                folder=None if out is None else out / PROGRESS,
                progress=partial(_step, step, extent(window)),
            )  # fmt: skip
    _tell(found)
    if out is not None:
        with folder_at_once(out) as unfinished:
            _write(found, unfinished)
        shutil.rmtree(out / PROGRESS, ignore_errors=True)
        say(f"The page: {(out / 'report.html').resolve()}")


def _tell(found: dict[Window, Discovery]) -> None:
    """Print what was found for every kernel size."""
    from keyfilters.sizes import extent

    for window, one in found.items():
        show(one.models.sort_values("share", ascending=False), extent(window), SHOWN)
        say(one.words)
        if one.number is not None:
            say(one.number.words)


def _write(found: dict[Window, Discovery], folder: Path) -> None:
    """Write the keys of every kernel size, their tables, the page and the figure."""
    from keyfilters.report.discovery_figure import discovery_figure
    from keyfilters.report.discovery_page import write_discovery_report
    from keyfilters.sizes import extent

    for window, one in found.items():
        k = window[0] if len(set(window)) == 1 else "x".join(map(str, window))
        one.keys.save(folder / f"keys_{k}.safetensors")
        one.keys.save(folder / f"keys_{k}.txt")
        one.curve.to_csv(folder / f"curve_{k}.csv", index=False)
        one.models.to_csv(folder / f"models_{k}.csv", index=False)
        write_parquet(one.served, folder / f"served_{k}.parquet")
    named = {extent(window): one for window, one in found.items()}
    write_discovery_report(named, folder / "report.html", command=command_line())
    discovery_figure(named).savefig(folder / "discovery.png", dpi=150)


def _asked(
    criterion: str, source: list[str], images: str | None, count: int, seed: int, device: str
) -> dict[str, Any]:
    """The model and the images that a criterion needs."""
    from keyfilters.discovery.criteria import check_criterion

    check_criterion(criterion)
    if criterion == "variance":
        if images is not None:
            raise KeyFiltersError("--images serve --criterion outputs, agreement and accuracy only")
        return {}
    if images is None or len(source) != 1 or not source[0].startswith("timm:"):
        raise KeyFiltersError(f"--criterion {criterion} needs --images and one model, timm:NAME")
    from keyfilters.sources.timm_models import load_timm

    model = load_timm(source[0].removeprefix("timm:"), seed)[0].to(device).eval()
    if criterion != "accuracy":
        return {"model": model, "images": halves(images, model, count, seed)[0].to(device)}
    found, labels = labelled(images, model)
    return {"model": model, "images": found.to(device), "labels": labels}


def _step(step: Callable[[str], None], size: str, name: str) -> None:
    step(f"{size}: {name}")


def _sizes(bank: FilterBank, size: str | None, candidates: int) -> list[Window]:
    from keyfilters.sizes import extent, parse_size

    if size is not None:
        return [parse_size(size)]
    enough = [window for window, n in bank.sizes.items() if n >= candidates]
    if not enough:
        have = ", ".join(f"{extent(window)}: {n}" for window, n in bank.sizes.items())
        raise KeyFiltersError(
            f"no kernel size has {candidates} filters ({have}); take fewer --candidates"
        )
    return enough

"""``keyfilters experiment NAME``: one command for every experiment, made from its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from keyfilters.cli.common import (
    Address,
    CpusPerRun,
    GpusPerRun,
    check_device,
    check_out,
    command_line,
    progress_bar,
)
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import EXPERIMENTS
from keyfilters.experiments.experiment import Shared
from keyfilters.query_strings import whole_number

__all__ = ["app"]

WRITES = (
    "Writes report.html (the page), record.json (all that it shows), table.csv, conditions.csv and "
    "comparisons.csv; the same command goes on where it was stopped."
)
Workers = Annotated[
    int | None,
    typer.Option(help="Runs at a time; default: one a core, one on a GPU, or what a cluster holds.",
                 show_default=False),
]  # fmt: skip
Executor = Annotated[str, typer.Option(help="local, or ray: runs on a Ray cluster.")]
app = typer.Typer(
    help="Train small networks under several conditions, beside controls, and compare them.",
    no_args_is_help=True,
)


@app.command("page")
def page(
    record: Annotated[Path, typer.Argument(help="A record.json that an experiment wrote.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Draw the page of a recorded experiment again."""
    import json

    from keyfilters.report.experiment_page import write_experiment

    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFiltersError(f"cannot read {record}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise KeyFiltersError(f"{record} is no JSON file: {error}") from error
    try:
        written = write_experiment(found, out)
    except (KeyFiltersError, OSError, MemoryError):
        raise
    except Exception as error:  # of a part that is missing or of another kind, whatever draws it
        reason = f"{type(error).__name__}: {error}"
        raise KeyFiltersError(f"{record} is no whole record of an experiment ({reason})") from error
    say(f"The page: {written.resolve()}")


def _command(name: str, function: Callable[..., Any]) -> Callable[..., None]:
    """Return a command with the options of an experiment and those that all share."""
    parameters = inspect.signature(function).parameters
    defaults: Shared = parameters["shared"].default
    hints, shared = (get_type_hints(x, include_extras=True) for x in (function, Shared))
    own = {x: _option(hints[x], parameters[x].default) for x in parameters if x != "shared"}
    common = {
        x.name: _option(shared[x.name], getattr(defaults, x.name))
        for x in fields(Shared)
        if x.name not in own and not (x.name == "size" and "sizes" in own)
    }

    def command(
        executor: Executor = "local",
        address: Address = "",
        cpus_per_run: CpusPerRun = 1,
        gpus_per_run: GpusPerRun = 0,
        workers: Workers = None,
        out: Path = Path(f"experiment-{name}"),
        **given: Any,
    ) -> None:
        chosen = replace(defaults, **{x: given.pop(x) for x in common})
        options = {x: _value(x, given[x], parameters[x].default) for x in own}
        check_out(out)
        if chosen.device != "auto" and executor == "local":
            check_device(chosen.device)
        if workers is None and executor == "local" and _on_gpu(chosen.device):
            workers = 1  # as many as there are cores would not fit on it
        cluster = (address, cpus_per_run, gpus_per_run)
        _run(function, chosen, options, (executor, *cluster, workers), out)

    fixed = list(inspect.signature(command).parameters.values())[:-1]
    hinted = get_type_hints(command, include_extras=True)
    fixed = [x.replace(annotation=hinted[x.name]) for x in fixed]
    added = [
        inspect.Parameter(x, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for x, (kind, default) in {**own, **common}.items()
    ]
    whole = [*added, *(x.replace(kind=inspect.Parameter.KEYWORD_ONLY) for x in fixed)]
    command.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
    command.__annotations__ = {x.name: x.annotation for x in whole}
    command.__doc__ = f"{inspect.getdoc(function)}\n\n{WRITES}"
    return command


def _option(hint: Any, default: Any) -> tuple[Any, Any]:
    """Return the type and default of an option: texts repeat, numbers stand between commas."""
    kind, words = get_args(hint)
    if get_origin(kind) is not tuple:
        return Annotated[kind, typer.Option(help=words)], default
    texts = get_args(kind)[0] is str
    shown = ", ".join(map(str, default)) or "none"
    help_text = f"{words.rstrip('.')}; repeatable." if texts else words
    option = typer.Option(help=help_text, show_default=shown)
    return Annotated[list[str] | None if texts else str | None, option], None


def _value(name: str, given: Any, default: Any) -> Any:
    """Return what an experiment takes for a value of the command line."""
    if not isinstance(default, tuple):
        return given
    if given is None:
        return default
    if isinstance(given, list):
        return tuple(given)
    numbers = [whole_number(part.strip()) for part in given.split(",")]
    if None in numbers:
        raise KeyFiltersError(f"--{name} {given}: whole numbers with commas are expected")
    return tuple(numbers)


def _run(
    function: Callable[..., Any],
    shared: Shared,
    options: dict[str, Any],
    where: tuple[str, str, float, float, int | None],
    out: Path,
) -> None:
    """Perform an experiment, print what came out, and write its record and page."""
    from keyfilters.experiments import run_experiment
    from keyfilters.experiments.ray_cluster import executor_from
    from keyfilters.experiments.record import write_record
    from keyfilters.report.experiment_page import write_experiment

    executor = executor_from(*where)
    experiment = function(shared, **options)
    with progress_bar() as step:
        record = run_experiment(experiment, out, executor=executor, progress=step)
    record["command"] = command_line()
    given = {x.name: getattr(shared, x.name) for x in fields(Shared)} | options
    record["options"] = {k: list(x) if isinstance(x, tuple) else x for k, x in given.items()}
    import pandas as pd

    conditions = pd.DataFrame(record["conditions"])
    show(conditions, record["measure"], ("label", "seeds", "mean", "low", "high"))
    for row in record["comparisons"]:
        say(f"{row['question']}\n  {row['sentence']}")
    say(f"In short: {record['short']}")
    for failure in record["failures"]:
        say(failure, err=True)
    write_record(record, out)
    say(f"The page: {write_experiment(record, out / 'report.html').resolve()}")


def _on_gpu(device: str) -> bool:
    """Whether runs on this machine compute on a GPU."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


for experiment, module in EXPERIMENTS.items():
    found = getattr(importlib.import_module(f"keyfilters.experiments.{module}"), module)
    app.command(experiment)(_command(experiment, found))

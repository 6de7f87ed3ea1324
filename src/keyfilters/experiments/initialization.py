"""Does starting from biological filters help? The experiment of babaiee2024echos, with controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.experiment import DATA_HELP, Experiment, Panel, Shared
from keyfilters.experiments.questions import Contrast, Question, Trend
from keyfilters.query_strings import parse

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMES", "initialization"]

SCHEMES = (
    *("default", "kaiming", "trunc-normal", "trunc-normal?std=keep"),
    *("covariance", "covariance?std=keep", "center-surround", "center-surround?std=keep"),
    *("impulse?std=keep", "keys?std=keep"),
)
REFERENCES = ("default", "kaiming", "trunc-normal", "covariance")  # what a gain must exceed
REACHED = 0.95  # of the final accuracy of the default
DEFAULTS = Shared()
EXPLANATION = (
    "A network of depthwise convolutions starts from random filters and learns edges, centres and "
    "bars. Does it learn better or faster if it starts from filters like those of the retina, "
    "bright centres with dark surrounds and the opposite (babaiee2024echos)? The same network is "
    "trained from several first filters; everything else, the first weights of the other layers, "
    "the images and their order, is the same for runs of one seed. The schemes also differ in the "
    "size of their filters, so each is tried at the root mean square of the network's own first "
    "filters too (std keep): these are compared with each other, and with the default."
)


def initialization(
    shared: Shared = DEFAULTS,
    *,
    data: Annotated[str, DATA_HELP] = "digits",
    sizes: Annotated[tuple[int, ...], "Kernel sizes, with commas."] = (3, 5, 7),
    condition: Annotated[
        tuple[str, ...], "An initialisation, such as center-surround?std=keep&gammas=0.5."
    ] = SCHEMES,
    bank: Annotated[str, "Trained filters, any source, for the condition idealized."] = "",
) -> Experiment:
    """Does starting from center-surround filters help, as babaiee2024echos found?

    Trains the same network from different first depthwise filters.
    """
    from keyfilters.experiments.single_run import make_run

    if given := {"size", "kernel_sizes"} & set(parse(shared.network)[1]):
        raise KeyFiltersError(
            f"--network {shared.network}: the kernel sizes are those of --sizes; leave out "
            f"{', '.join(sorted(given))}"
        )
    runs = []
    for seed in shared.all_seeds:
        for size in sizes:
            for text in condition:
                row = {"size": size, **_factors(text)}
                if bank and row["scheme"].startswith("idealized"):
                    text = f"{text}{'&' if '?' in text else '?'}bank={bank}"
                treatment = "learned" if text == "default" else f"initialize:{text}"
                options = shared.options(data=data, size=size, treatment=treatment)
                runs.append(make_run(row, seed, options))
    return Experiment(
        name="initialization",
        title="Does starting from biological filters help?",
        explanation=EXPLANATION,
        runs=runs,
        questions=_questions([_factors(text) for text in condition]),
        panels=[Panel("top-1 accuracy, %", split=("size",))],
        words={"std": {"keep": "std keep"}},
        matrix=("scheme", "size", "mean"),
        columns=("rms",),
        derive=epochs_needed,
    )


def _factors(text: str) -> dict[str, Any]:
    """Return scheme and std of an initialisation; its other options stay with the scheme."""
    std = parse(text)[1].get("std")
    name, _, rest = text.partition("?")
    rest = "&".join(part for part in rest.split("&") if part and not part.startswith("std="))
    return {"scheme": f"{name}?{rest}" if rest else name, "std": std}


def _questions(rows: list[dict[str, Any]]) -> list[Question]:
    default = {"scheme": "default", "std": None}
    questions: list[Question] = []
    known = [row for row in rows if parse(row["scheme"])[0] in REFERENCES]
    for row in rows:
        if row in known:
            if row != default:
                words = "Do other first filters differ from the default?"
                questions.append(Contrast(words, row, default))
            continue
        words = f"Does {row['scheme']} beat the default, and other first filters of like scale?"
        alike = [x for x in known if x == default or (row["std"] and x["std"] == row["std"])]
        questions += [Contrast(words, row, other) for other in alike]
        words = f"Does {row['scheme']} learn faster (epochs to 95 % of the default's accuracy)?"
        questions.append(Contrast(words, row, default, "epochs_needed", unit="epochs", claim=False))
        words = f"Does the gain of {row['scheme']} over the default change with the kernel?"
        questions.append(Trend(words, row, default, "size", "tap"))
    return questions


def epochs_needed(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Add the epochs until 95 % of the default's final accuracy of the same seed and size."""
    import numpy as np

    from keyfilters.experiments.comparison import epochs_to_reach
    from keyfilters.experiments.results import read_lists

    curves = read_lists(table, out, "curve")
    default = (table["scheme"] == "default") & (table["status"] == "done")
    marks = {
        (row["size"], row["seed"]): REACHED * curve[-1]  # on the same images as the curves
        for row, curve, is_default in zip(table.to_dict("records"), curves, default, strict=True)
        if is_default and curve
    }
    found = [
        float(epochs_to_reach(curve, marks.get((size, seed), np.nan))) if curve else np.nan
        for curve, size, seed in zip(curves, table["size"], table["seed"], strict=True)
    ]
    return table.assign(epochs_needed=found)

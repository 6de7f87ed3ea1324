"""An experiment as data: its runs as rows of factors, its questions, and what its page draws.

An experiment is a function in a file of its own: from the options that all share, and its own,
it makes an `Experiment`, see `keyfilters.experiments.perform`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.questions import Question

if TYPE_CHECKING:
    import pandas as pd

    from keyfilters.experiments.run import Run

__all__ = ["Experiment", "Panel", "Shared"]

DATA_HELP = (
    "digits, photos, fashion-mnist, imagefolder:FOLDER, torchvision:NAME or hf:NAME; also a part, "
    "such as digits?samples=500&classes=0,1."
)


@dataclass(frozen=True)
class Shared:
    """Options of every experiment; the text beside each is its help on the command line."""

    size: Annotated[int, "Kernel size."] = 5
    seeds: Annotated[int, "Number of seeds; 3 for a trend, 5 for a claim."] = 5
    network: Annotated[
        str, "convmixer, or a timm model and its options: convnext_atto?patch_size=2."
    ] = "convmixer"
    width: Annotated[int, "Channels of convmixer."] = 32
    depth: Annotated[int, "Blocks of convmixer."] = 4
    std: Annotated[float, "Of the first depthwise filters; 0: the network's own."] = 0.0
    epochs: Annotated[float, "Passes over the training images."] = 10.0
    batch: Annotated[int, "Images a step."] = 64
    lr: Annotated[float, "Learning rate of AdamW."] = 0.01
    resolution: Annotated[int, "Side of the images; 0: as they are."] = 0
    channels: Annotated[int, "1 or 3; 0: as they are."] = 0
    recipe: Annotated[str, "A recipe whose sections count before these options."] = ""
    seed: Annotated[int, "The first seed."] = 0
    device: Annotated[str, "Where to compute: auto, cpu, cuda, mps."] = "auto"

    def options(self, **own: Any) -> dict[str, Any]:
        """Return the options of `single_run` that all runs share, and some of their own."""
        from keyfilters.experiments.run_parts import recipe_sections

        shared = {name: x for name, x in asdict(self).items() if name not in ("seeds", "seed")}
        for name in ("size", "seeds", "width", "depth", "epochs", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise KeyFiltersError(f"--{name} {getattr(self, name)}; a number above 0 expected")
        shared["device"] = "" if self.device == "auto" else self.device
        shared["recipe"] = recipe_sections(self.recipe) if self.recipe else {}
        return {**shared, **own}

    @property
    def all_seeds(self) -> range:
        """Seeds of the runs."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class Panel:
    """A chart: a result over epochs, steps or a factor, one line a condition.

    Attributes:
        words: what is drawn.
        value: a result: a list over epochs or steps, or a number if `over` is a factor.
        across: name of the axis.
        at: a result that holds the places on the axis; empty counts from 1.
        over: a factor of numbers, which is the axis.
        split: factors, each of whose levels has a chart of its own.
        source: role of the extra run that holds the lists, by ``value`` as prefix.
    """

    words: str
    value: str = "curve"
    across: str = "epoch"
    at: str = ""
    over: str = ""
    split: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: short.
        title: the question in one sentence.
        explanation: one paragraph for someone who has not read the papers.
        runs: rows of the same factors.
        questions: what is asked of them.
        panels: charts.
        words: factor → level → how it is written; a level that is missing is written as it is, and
            an empty text leaves it out.
        matrix: (factor of the rows, factor of the columns, result) of a table of means.
        columns: results whose means are told for every condition beside `measure`.
        derive: adds columns to the table of runs, from it and the folder of the grid.
        extra: runs beside the table, whose lists are drawn as charts, by title.
        measure: what is compared, with its unit.
    """

    name: str
    title: str
    explanation: str
    runs: Sequence[Run]
    questions: Sequence[Question]
    panels: Sequence[Panel] = ()
    words: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    matrix: tuple[str, str, str] | None = None
    columns: Sequence[str] = ()
    derive: Callable[[pd.DataFrame, Path], pd.DataFrame] | None = None
    extra: Mapping[str, Run] = field(default_factory=dict)
    measure: str = "top-1 accuracy on the test images, %"

    @property
    def factors(self) -> list[str]:
        """Names of the factors."""
        return list(self.runs[0].factors)

    def label(self, levels: Mapping[str, Any]) -> str:
        """Return the name of a condition: the levels of the factors that differ."""
        told = []
        for name, level in levels.items():
            words = self.words.get(name, {})
            if level is None or self._constant(name):
                continue
            if level in words:
                told.append(words[level])
            elif isinstance(level, bool):
                told.append(name if level else "")
            else:
                told.append(level if isinstance(level, str) else f"{name} {level:g}")
        return ", ".join(filter(None, told)) or "as usual"

    def _constant(self, name: str) -> bool:
        return name in self.factors and len({str(run.factors[name]) for run in self.runs}) == 1

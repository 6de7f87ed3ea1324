"""One figure of a paper: what was published, and how it is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["NEEDS", "Figure", "Inputs", "Row"]

# What a figure can need, and what to do about it.
NEEDS = {
    "filters": "the eight learned filters of the paper as a file: --filters FILE",
    "weights": "weights of timm models, from the hub or a folder: --weights DIR",
    "imagenet": "ImageNet, and days on several GPUs",
    "images": "a data set of images, and hours: an experiment of its own",
}
# Needs that this command cannot meet: only the command beside the figure can.
ELSEWHERE = ("imagenet", "images")


@dataclass(frozen=True)
class Inputs:
    """What the user has at hand.

    Attributes:
        filters: file of the eight key filters, see `keyfilters.receptive_fields.read_filters`.
        weights: folder of model files named as timm names the models; None asks the hub.
        seed: of everything random.
        progress: called with the name of each step before it starts.
    """

    filters: Path | None = None
    weights: Path | None = None
    seed: int = 0
    progress: Callable[[str], None] = lambda name: None
    _made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives; what several figures need is made for the first of them."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


@dataclass(frozen=True)
class Row:
    """One measured number beside the published one.

    Attributes:
        quantity: what it is, such as ``"filter 1, σx"``.
        published: number or words of the paper; empty where it gives none.
        measured: the number found here.
        null: the same of the strictest null; NaN where that has no meaning.
        note: what a reader must know to compare them.
    """

    quantity: str
    published: float | str
    measured: float
    null: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One figure, table or statement of a paper.

    Attributes:
        paper: key of the paper.
        name: short name, unique within the paper.
        published: what the paper says, in words.
        known_from: ``"paper"`` for its text or published code, ``"review"`` for reviews and
            summaries of it, which are leads only.
        command: what to type to measure it.
        needs: names in `NEEDS`.
        measure: gives the rows; None where only `command` can.
    """

    paper: str
    name: str
    published: str
    known_from: str
    command: str
    needs: tuple[str, ...] = ()
    measure: Callable[[Inputs], list[Row]] | None = field(default=None, compare=False)

    def missing(self, inputs: Inputs) -> str:
        """Return what lacks to measure this figure now, or an empty string."""
        lacking = [need for need in self.needs if need in ELSEWHERE]
        lacking += ["filters"] * ("filters" in self.needs and inputs.filters is None)
        return "; ".join(NEEDS[need] for need in lacking)

    def as_dict(self, inputs: Inputs) -> Mapping[str, Any]:
        """Return the figure as one row of a table, with its state."""
        lacking = self.missing(inputs)
        if lacking:
            state = f"needs {lacking}"
        elif self.measure is None:
            state = "type the command"
        elif "weights" in self.needs:
            state = "can be measured where the weights can be read"
        else:
            state = "can be measured here"
        return {
            "paper": self.paper, "figure": self.name, "published": self.published,
            "known from": self.known_from, "command": self.command, "state": state,
        }  # fmt: skip

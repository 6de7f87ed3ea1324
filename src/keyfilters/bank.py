"""What flows through the house: depthwise layers with their filters, gathered in a bank."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, SourceError, refuse_damage
from keyfilters.scalespace import why_unusable
from keyfilters.sizes import as_window
from keyfilters.tensor_files import map_tensors, save_tensors
from keyfilters.texts import whole_characters

__all__ = ["FilterBank", "Layer"]

FORMAT = "keyfilters-bank-1"
MAPPED_FROM = 2**26  # bytes of a file whose filters stay on disk until they are used


@dataclass(frozen=True, eq=False)
class Layer:
    """One depthwise convolution.

    Attributes:
        model: name of the model it comes from.
        name: name of the layer inside the model, as its format spells it; characters that
            no file can hold are written out, see `keyfilters.texts`.
        weight: ``(C, k_y, k_x)`` float32, row 0 on top, exactly the stored values;
            ``(C, 1, k_y, k_x)``, as PyTorch stores it, is taken too.
        stride: ``(y, x)``; None where the format does not tell (a state dict).
        dilation: ``(y, x)``; None where the format does not tell.
        depth: relative depth in [0, 1] among the model's depthwise layers.
        multiplier: filters per input channel; None where the format does not tell.
        note: what a reader should know about this layer, usually empty.
        groups: equal to the input channels; None where the format does not tell.
        padding: ``(y, x)`` on both sides, ``(top, left, bottom, right)`` where the sides differ, or
            ``"same"`` where it depends on the input; None where the format does not tell.
        ndim: 2, or 1 for a one-dimensional convolution, whose filters are read as 1×k.

    Raises:
        KeyFiltersError: the weight is not three-dimensional or not of real numbers.
    """

    model: str
    name: str
    weight: NDArray[np.float32]
    stride: tuple[int, int] | None
    dilation: tuple[int, int] | None
    depth: float
    multiplier: int | None = None
    note: str = ""
    groups: int | None = None
    padding: tuple[int, ...] | str | None = None
    ndim: int = 2

    def __post_init__(self) -> None:
        for text in ("model", "name", "note"):
            object.__setattr__(self, text, whole_characters(getattr(self, text)))
        weight = np.asarray(self.weight)
        if weight.ndim == 4 and weight.shape[1] == 1:
            weight = weight[:, 0]
            object.__setattr__(self, "weight", weight)
        if weight.ndim != 3 or weight.dtype.kind not in "fiu":
            raise KeyFiltersError(
                f"layer {self.name}: expected filters as real numbers of shape (C, k_y, k_x) or "
                f"(C, 1, k_y, k_x), got {weight.dtype} of shape {weight.shape}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Kernel size ``(k_y, k_x)`` in taps."""
        return self.weight.shape[1], self.weight.shape[2]

    def __repr__(self) -> str:
        channels, k_y, k_x = self.weight.shape
        return f"Layer({self.model}/{self.name}: {channels} filters of {k_y}×{k_x})"


class FilterBank:
    """Depthwise layers of one or many models, and what was seen and not taken.

    Args:
        layers: the depthwise layers, model by model in order of depth.
        skipped: ``(name, reason)`` of every convolution that was seen and not taken.

    >>> weight = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    >>> bank = FilterBank([Layer("net", "conv", weight, (1, 1), (1, 1), 0.0)])
    >>> bank.sizes
    {(3, 3): 2}
    >>> w, table = bank.stack(3)
    >>> w.shape, table["mean"].tolist()
    ((2, 3, 3), [4.0, 13.0])
    """

    def __init__(self, layers: Iterable[Layer], skipped: Iterable[tuple[str, str]] = ()) -> None:
        self.layers: list[Layer] = list(layers)
        self.skipped: list[tuple[str, str]] = [
            (whole_characters(name), whole_characters(reason)) for name, reason in skipped
        ]

    @property
    def models(self) -> list[str]:
        """Names of the models, in order of appearance."""
        return list(dict.fromkeys(layer.model for layer in self.layers))

    @property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Number of filters of every kernel size ``(k_y, k_x)``, smallest kernel first."""
        count: Counter[tuple[int, int]] = Counter()
        for layer in self.layers:
            count[layer.size] += len(layer.weight)
        return dict(sorted(count.items()))

    def __len__(self) -> int:
        return sum(len(layer.weight) for layer in self.layers)

    def __repr__(self) -> str:
        def count(number: int, noun: str) -> str:
            return f"{number:,} {noun}{'' if number == 1 else 's'}"

        sizes = ", ".join(f"{y}×{x}: {n:,}" for (y, x), n in self.sizes.items())
        return (
            f"FilterBank({count(len(self), 'filter')} in {count(len(self.layers), 'layer')} of "
            f"{count(len(self.models), 'model')}; {sizes or 'empty'})"
        )

    def _repr_html_(self) -> str:
        """Show the first filters of every layer, for a notebook."""
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        count = len(self.layers)
        places = np.linspace(0, count - 1, min(count, 12)).round().astype(int)
        shown = [self.layers[i] for i in places]
        rows = "".join(
            f"<tr><td>{escape(layer.name)}</td><td>{layer.depth:.2f}</td>"
            f"<td>{len(layer.weight):,}</td>"
            f"<td>{contact_sheet(layer.weight[:20], 20, 24)}</td></tr>"
            for layer in shown
        )
        head = "<tr><th>layer</th><th>depth</th><th>filters</th><th>the first 20</th></tr>"
        told = f"; {len(shown)} of {count} layers" if len(shown) < count else ""
        return f"<p>{escape(repr(self))}{told}</p><table>{head}{rows}</table>"

    def __add__(self, other: FilterBank) -> FilterBank:
        """Join two banks; a model name that both hold gets a number in the second."""
        taken = set(self.models)
        renamed = {model: _free_name(model, taken) for model in other.models}
        layers = [replace(layer, model=renamed[layer.model]) for layer in other.layers]
        return FilterBank([*self.layers, *layers], [*self.skipped, *other.skipped])

    def stack(self, size: int | tuple[int, int]) -> tuple[NDArray[np.float32], pd.DataFrame]:
        """Return all filters of one kernel size, and a table with one row a filter.

        Args:
            size: ``k`` for a square kernel or ``(k_y, k_x)``.

        Returns:
            ``(n, k_y, k_x)`` float32, and a frame with the columns model, layer, depth, channel,
            norm (Euclidean), mean (of the taps) and flaw (see `keyfilters.scalespace.why_unusable`;
            empty for a usable filter).

        Raises:
            KeyFiltersError: the bank holds no filter of this size.
        """
        wanted = as_window(size)
        layers = [layer for layer in self.layers if layer.size == wanted]
        if not layers:
            held = ", ".join(f"{y}×{x}" for y, x in self.sizes) or "none"
            raise KeyFiltersError(
                f"no {wanted[0]}×{wanted[1]} filters in this bank; the sizes it holds: {held}"
            )
        filters = np.concatenate([layer.weight for layer in layers])
        channels = [len(layer.weight) for layer in layers]
        flat = filters.reshape(len(filters), -1).astype(np.float64)
        table = pd.DataFrame(
            {
                "model": np.repeat([layer.model for layer in layers], channels),
                "layer": np.repeat([layer.name for layer in layers], channels),
                "depth": np.repeat([layer.depth for layer in layers], channels),
                "channel": np.concatenate([np.arange(n) for n in channels]),
                "norm": np.linalg.norm(flat, axis=1),
                "mean": flat.mean(axis=1),
                "flaw": why_unusable(filters),
            }
        )
        return filters, table

    def unusable(self) -> pd.DataFrame:
        """List the filters that have no shape to study: model, layer, channel and flaw."""
        rows = [
            (layer.model, layer.name, channel, flaw)
            for layer in self.layers
            for channel, flaw in enumerate(why_unusable(layer.weight))
            if flaw
        ]
        return pd.DataFrame(rows, columns=["model", "layer", "channel", "flaw"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank as one safetensors file; nothing is left behind if that fails."""
        metadata = {
            "format": FORMAT,
            "layers": json.dumps([_to_json(layer) for layer in self.layers]),
            "skipped": json.dumps(self.skipped),
        }
        tensors = {f"{i:05d}": layer.weight for i, layer in enumerate(self.layers)}
        save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FilterBank:
        """Read a bank written by `save`.

        The filters of a file of 64 MiB and more stay on disk, memory-mapped, until they are used;
        such weights cannot be written to.

        Raises:
            SourceError: the file is missing, damaged, or not a bank.
        """
        from safetensors import safe_open

        with refuse_damage(path, "a filter bank"):
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise SourceError(f"{path} is not a filter bank; to read a model: kf.read(...)")
                large = Path(path).stat().st_size >= MAPPED_FROM
                tensor = map_tensors(Path(path)).__getitem__ if large else file.get_tensor
                layers = [
                    _from_json(held, tensor(f"{i:05d}"))
                    for i, held in enumerate(json.loads(metadata["layers"]))
                ]
                skipped = [(name, why) for name, why in json.loads(metadata.get("skipped", "[]"))]
            return cls(layers, skipped)


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    taken.add(free)
    return free


def _to_json(layer: Layer) -> dict[str, Any]:
    return {x.name: getattr(layer, x.name) for x in fields(layer) if x.name != "weight"}


def _from_json(held: dict[str, Any], weight: NDArray[np.float32]) -> Layer:
    lists = {name: tuple(value) for name, value in held.items() if isinstance(value, list)}
    return Layer(weight=weight, **(held | lists))

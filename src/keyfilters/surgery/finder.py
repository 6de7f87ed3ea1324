"""What a reader finds, taken as places to write to instead of as filters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from keyfilters.depthwise import ConvShape, why_not_depthwise
from keyfilters.sources.collect import Collector, Load, SkipError
from keyfilters.surgery.targets import Target, left_alone, stored_target

__all__ = ["Finder", "Found", "Opened"]

# The layers of a file; and what writes it to a path, given the names of the layers changed.
Opened = tuple[list[Target], Callable[[Path, Collection[str]], None]]


class Found(NamedTuple):
    """A depthwise convolution.

    Attributes:
        shape: two-dimensional; a kernel of one dimension counts as 1×k.
        load: returns the weights, reshapable to ``(C, k_y, k_x)``.
        identity: equal for two convolutions that share their weights.
    """

    shape: ConvShape
    load: Load
    identity: Hashable


class Finder(Collector):
    """Gathers the depthwise convolutions that a reader offers, in order, under names of their own.

    Attributes:
        found: by name; a second one of a name is called ``"NAME (2)"``.
        left: why others cannot be read or written, by name.
        others: the other convolutions, by the identity of their weights.
    """

    def __init__(self) -> None:
        super().__init__("")
        self.found: dict[str, Found] = {}
        self.left: dict[str, str] = {}
        self.others: dict[Hashable, str] = {}
        self._owners: dict[Hashable, str] = {}

    def offer(
        self, name: str, shape: ConvShape, weight: Load, *, identity: Hashable = None, **_: Any
    ) -> None:
        """Take a convolution if it is depthwise and the first with its weights."""
        if len(shape.kernel) == 1:
            shape = replace(shape, kernel=(1, *shape.kernel))
        if why_not_depthwise(shape) is not None:
            self.others.setdefault(identity, name)
        elif identity is not None and identity in self._owners:
            self.skip(name, f"shares its weights with {self._owners[identity]}")
        else:
            self._owners[identity] = free = self._free(name)
            self.found[free] = Found(shape, weight, identity)

    def skip(self, name: str, reason: str) -> None:
        """Note a convolution that cannot be read."""
        self.left[self._free(name)] = reason

    def targets(self, kernel: Callable[[str, Found], Tensor]) -> list[Target]:
        """Return all layers, those that are left alone with the reason.

        Args:
            kernel: returns a copy of the stored weights ``(C, 1, k_y, k_x)`` of a layer found, or
                raises a SkipError that says why they cannot be written.
        """
        found, last = [], max(len(self.found) - 1, 1)
        for i, (name, conv) in enumerate(self.found.items()):
            try:
                found.append(stored_target(name, kernel(name, conv), i / last))
            except SkipError as error:
                found.append(left_alone(name, str(error)))
        return found + [left_alone(name, reason) for name, reason in self.left.items()]

    def _free(self, name: str) -> str:
        free, number = name, 2
        while free in self.found or free in self.left:
            free, number = f"{name} ({number})", number + 1
        return free

"""Operators of TensorFlow graphs, from protocol buffers or from JSON, and stored tensors."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from keyfilters.sources.collect import Array, Load, SkipError, float_array
from keyfilters.sources.wire import Message

__all__ = ["JsonNode", "MessageNode", "Node", "Stored", "stored_tensor"]

# TensorFlow's numbers of types.
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 14: "bf16", 19: "<f2"}
LARGEST = 2**26


@dataclass(frozen=True)
class Stored:
    """A stored weight: what tells it from others, its shape, and what loads it."""

    identity: Hashable
    shape: tuple[int, ...]
    load: Load
    name: str = ""


class Node(ABC):
    """An operator: its name, type, inputs and attributes."""

    name: str
    op: str
    inputs: list[str]
    raw_inputs: list[str]

    @abstractmethod
    def ints(self, name: str) -> list[int]:
        """Return an attribute that is a list of integers."""

    @abstractmethod
    def text(self, name: str) -> str:
        """Return an attribute that is a text."""

    @abstractmethod
    def functions(self, name: str) -> list[str]:
        """Return the names of the functions in an attribute, which is one or a list of them."""

    def texts(self, name: str) -> list[str]:
        """Return an attribute that is a constant of texts."""
        return []

    def tensor(self) -> Stored | None:
        """Return the value of a constant; None where it is kept elsewhere."""
        return None


class MessageNode(Node):
    """An operator of a GraphDef."""

    def __init__(self, message: Message) -> None:
        self.name, self.op = message.text(1), message.text(2)
        self.raw_inputs = message.texts(3)
        self.inputs = [_plain(x) for x in self.raw_inputs]
        self.message = message
        self._held: dict[str, Message] | None = None

    @property
    def held(self) -> dict[str, Message]:
        """The attributes."""
        if self._held is None:
            self._held = self.message.mapping(5)
        return self._held

    def ints(self, name: str) -> list[int]:  # noqa: D102
        return self.held[name].message(1).numbers(3) if name in self.held else []

    def text(self, name: str) -> str:  # noqa: D102
        return self.held[name].text(2) if name in self.held else ""

    def functions(self, name: str) -> list[str]:  # noqa: D102
        held = self.held.get(name)
        found = [*held.messages(10), *held.message(1).messages(9)] if held else []
        return [x.text(1) for x in found]

    def texts(self, name: str) -> list[str]:  # noqa: D102
        return self.held[name].message(8).texts(8) if name in self.held else []

    def tensor(self) -> Stored | None:  # noqa: D102
        if "value" not in self.held:
            return None
        shape, load = stored_tensor(self.held["value"].message(8))
        return Stored(id(self), shape, load, self.name)


class JsonNode(Node):
    """An operator of a graph in JSON; its constants are kept beside it."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        self.name, self.op = str(held.get("name", "")), str(held.get("op", ""))
        self.raw_inputs = [str(x) for x in held.get("input") or []]
        self.inputs = [_plain(x) for x in self.raw_inputs]
        self.held = held.get("attr") or {}

    def ints(self, name: str) -> list[int]:  # noqa: D102
        listed = (self.held.get(name) or {}).get("list") or {}
        return [int(x) for x in listed.get("i") or []]

    def text(self, name: str) -> str:  # noqa: D102
        value = (self.held.get(name) or {}).get("s", "")
        return base64.b64decode(value).decode("utf-8", "replace") if value else ""

    def functions(self, name: str) -> list[str]:  # noqa: D102
        held = self.held.get(name) or {}
        found = [held["func"]] if held.get("func") else (held.get("list") or {}).get("func") or []
        return [str(x.get("name", "")) for x in found]


def stored_tensor(message: Message) -> tuple[tuple[int, ...], Load]:
    """Return shape and loader of a TensorProto."""
    shape = tuple(dim.signed(1) for dim in message.message(2).messages(2))
    kind = TYPES.get(message.number(1), "")

    def load() -> Array:
        count = prod(shape)
        if not kind:
            raise SkipError(f"its weights are of the type {message.number(1)}, which is not read")
        if min(shape, default=1) < 0 or count > LARGEST:
            raise ValueError(f"a tensor of shape {shape}")
        if len(content := message.bytes(4)):
            return float_array(content, kind).reshape(shape)
        if kind in ("<f4", "<f8"):
            values: Array = message.floats(*((5, kind) if kind == "<f4" else (6, kind)))
        elif kind in ("<f2", "bf16"):
            values = float_array(np.array(message.numbers(13), "<u2").tobytes(), kind)
        else:
            values = np.array(message.numbers(10 if kind == "<i8" else 7))
        if not values.size:  # as TensorFlow takes it
            return np.zeros(shape, values.dtype)
        # The last value stands for all that follow.
        return np.append(values, np.repeat(values[-1:], max(count - values.size, 0))).reshape(shape)

    return shape, load


def _plain(name: str) -> str:
    """Return the node's name in the name of an input, such as ``^a`` or ``a:output:0``."""
    return name.removeprefix("^").partition(":")[0]

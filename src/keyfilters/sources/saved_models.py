"""Reading TensorFlow SavedModel folders and checkpoints.

The values lie in a tensor bundle: a sorted table of names (a LevelDB table, not compressed), and
files of data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Load, SkipError, float_array
from keyfilters.sources.content import beside, mapped
from keyfilters.sources.tensorflow_graphs import Graph, offer_graph, read_graph_def, restored_names
from keyfilters.sources.tensorflow_names import TAIL, NamedTensor, offer_by_name
from keyfilters.sources.tensorflow_nodes import TYPES, Stored
from keyfilters.sources.wire import Message, varint

__all__ = ["read_checkpoint", "read_saved_model"]

LARGEST_NAMES = 2**26  # bytes of all names
OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


def read_saved_model(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a SavedModel: its folder, or ``saved_model.pb`` in it."""
    file = beside(path, "saved_model.pb") if path.is_dir() else path
    index = file.parent / "variables" / "variables.index"
    bundle = _Bundle(beside(file, "variables/variables.index")) if index.exists() else None
    collector = Collector(model)
    for meta_graph in Message(mapped(file)).messages(2)[:1]:
        nodes, functions = read_graph_def(meta_graph.message(2))
        variables = bundle.variable if bundle else lambda name: None
        if bundle:
            bundle.restored = restored_names(nodes, functions)
        offer_graph(collector, Graph(nodes, functions, variables))
    bank = collector.bank()
    if bundle and not bank.layers:
        collector = Collector(model)
        offer_by_name(collector, bundle.named(), in_model_order=False)
        return FilterBank(collector.bank().layers, [*bank.skipped, *collector.skipped])
    return bank


def read_checkpoint(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a checkpoint, by its ``.index`` file and by names."""
    collector = Collector(model)
    offer_by_name(collector, _Bundle(path).named(), in_model_order=False)
    return collector.bank()


class _Bundle:
    """A tensor bundle: its entries by name, values loaded when asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Message] = {}
        left = LARGEST_NAMES
        for key, value in _table(mapped(path)):
            self.entries[key] = Message(value)
            left -= 64 + len(key)
            if left < 0:
                raise ValueError("its table of names is longer than any network's")
        self.shards = max(Message(self.entries.pop("", Message(b"")).data).number(1), 1)
        self.full_names: dict[str, str] = {}
        self.restored: dict[str, str] = {}
        if OBJECTS in self.entries:
            for node in _objects(self._bytes(self.entries.pop(OBJECTS))).messages(1):
                for attribute in node.messages(2):
                    if name := attribute.text(2):
                        self.full_names.setdefault(name, attribute.text(3))

    def _bytes(self, entry: Message) -> memoryview:
        shard = entry.number(3)
        stem = self.path.name.removesuffix(".index")
        name = f"{stem}.data-{shard:05d}-of-{self.shards:05d}"
        data = mapped(beside(self.path, name))
        start, size = entry.number(4), entry.number(5)
        if start + size > len(data):
            raise ValueError(f"{name} is cut short: expected {start + size} bytes or more")
        return data[start : start + size]

    def _tensor(self, entry: Message) -> tuple[tuple[int, ...], Load]:
        shape = tuple(dim.signed(1) for dim in entry.message(2).messages(2))
        kind = TYPES.get(entry.number(1), "")

        def load() -> Array:
            if not kind or entry.messages(7):
                raise SkipError("its weights are stored in a type or in slices that are not read")
            values = float_array(self._bytes(entry), kind)
            if values.size != prod(shape):
                raise ValueError(f"{values.size} values for a tensor of shape {shape}")
            return values.reshape(shape)

        return shape, load

    def variable(self, name: str) -> Stored | None:
        """Return a variable by its own name or by that of its entry."""
        key = self.restored.get(name) or self.full_names.get(name, name)
        if key not in self.entries:
            return None
        layer = re.sub(r"/[^/]*$", "", name)
        return Stored(key, *self._tensor(self.entries[key]), layer)

    def named(self) -> Iterator[NamedTensor]:
        """Yield all tensors by their own names where these are kept."""
        own = {key: name for name, key in self.full_names.items()}
        keras = any(key.endswith("/_kernel" + TAIL) for key in self.entries)
        for key, entry in self.entries.items():
            if entry.number(1) in TYPES:
                # The key says what an optimiser's slot is.
                name = own.get(key, key) if ".OPTIMIZER_SLOT" not in key else key
                if keras and key.endswith("/kernel" + TAIL) and entry.message(2).messages(2):
                    last = entry.message(2).messages(2)[-1].number(1)
                    # Keras 3 keeps the kernel of a dense convolution as "_kernel".
                    if last == 1:
                        name = f"{name.removesuffix(TAIL).removesuffix('/kernel')}/depthwise_kernel"
                yield NamedTensor(name, *self._tensor(entry))


def _objects(data: memoryview) -> Message:
    """Return the graph of objects: a tensor of one string, its length and a checksum before it."""
    size, at = varint(data, 0)
    return Message(data[at + 4 : at + 4 + size])


def _table(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield the entries of a LevelDB table."""
    if len(data) < 48:
        raise ValueError("the table of names is cut short")
    footer = data[-48:]
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    start, at = varint(footer, at)
    size, at = varint(footer, at)
    for _, handle in _block(data, start, size):
        start, at = varint(handle, 0)
        size, _ = varint(handle, at)
        yield from _block(data, start, size)


def _block(data: memoryview, start: int, size: int) -> Iterator[tuple[str, memoryview]]:
    """Yield the entries of a block, whose keys leave out what they share with the one before."""
    if size < 4 or start + size + 5 > len(data):
        raise ValueError("a block of the table of names ends behind the file")
    if data[start + size]:
        raise ValueError("the table of names is compressed, which is not read")
    block = data[start : start + size]
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    end = size - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + fresh + length > end or len(key) > 4096:
            raise ValueError("the table of names is damaged")
        key = key[:shared] + bytes(block[at : at + fresh])
        at += fresh
        yield key.decode("utf-8", "replace"), block[at : at + length]
        at += length

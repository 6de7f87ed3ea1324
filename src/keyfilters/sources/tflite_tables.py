"""The tables of a TensorFlow Lite file: graphs, and the data of tensors as real numbers.

A ``.tflite`` file is a flatbuffer: tables that point at each other by offsets, which Python's
flatbuffers do not verify.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.sources.collect import SkipError

__all__ = ["File", "Graph", "SkipError", "Table", "numbers", "text_of"]

Array = NDArray[Any]
Table = Any  # the package tflite has no types

COPIES = ("DEQUANTIZE", "DENSIFY")  # behind these a parameter stays the same parameter
# TensorType by number, since older tflite packages do not know the names of all.
FLOATS = {0: "<f4", 1: "<f2", 10: "<f8"}
INTEGERS = {2: "<i4", 3: "u1", 7: "<i2", 9: "i1", 16: "<u2"}
INT4, BFLOAT16 = 17, 18


class File:
    """The tables of a file and the data that tensors point to.

    Args:
        content: the whole file. The data of tensors are views of it.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        import tflite

        if content[4:8] != b"TFL3":
            raise ValueError("it lacks the mark at its fifth byte")
        self.content = content
        self.model = self._whole(tflite.Model.GetRootAs(content, 0))
        names = {code: name for name, code in vars(tflite.BuiltinOperator).items()}
        self.operators = [
            text_of(code.CustomCode())
            or names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "unknown")
            for code in self.tables(self.model, "OperatorCodes")
        ]
        self.buffers = [self._data(buffer) for buffer in self.tables(self.model, "Buffers")]

    def tables(self, parent: Table, name: str) -> list[Table]:
        """Return the tables of a vector, all of which lie inside the file."""
        count = getattr(parent, f"{name}Length")()
        if 4 * count > len(self.content):
            raise ValueError(f"it cannot hold {count} {name}")
        return [self._whole(getattr(parent, name)(i)) for i in range(count)]

    def _whole(self, table: Table) -> Table:
        """Return a table after making sure that no part of it lies outside the file."""
        start = table._tab.Pos
        index = start - struct.unpack_from("<i", self.content, start)[0]
        index_size, size = struct.unpack_from("<HH", self.content, max(index, 0))
        if index < 0 or max(index + index_size, start + size) > len(self.content):
            raise ValueError("a table lies outside the file")
        return table

    def _data(self, buffer: Table) -> NDArray[np.uint8]:
        # Files above 2 GB keep data behind the flatbuffer; old tflite packages know no offset.
        start, size = (buffer.Offset(), buffer.Size()) if hasattr(buffer, "Offset") else (0, 0)
        if start > 1:
            return np.frombuffer(self.content, np.uint8, size, start)
        return np.frombuffer(b"" if buffer.DataIsNone() else buffer.DataAsNumpy(), np.uint8)


class Graph:
    """A subgraph: its tensors, its operators, and which operator makes which tensor.

    Args:
        file: the file.
        graph: the SubGraph table.
    """

    def __init__(self, file: File, graph: Table) -> None:
        self.file = file
        self.tensors = file.tables(graph, "Tensors")
        self.shapes = [numbers(tensor.ShapeAsNumpy()) for tensor in self.tensors]
        self.operators = file.tables(graph, "Operators")
        self.inputs = [numbers(operator.InputsAsNumpy()) for operator in self.operators]
        self.outputs = [numbers(operator.OutputsAsNumpy()) for operator in self.operators]
        self.ends = numbers(graph.InputsAsNumpy()), numbers(graph.OutputsAsNumpy())
        self.makers = {tensor: i for i, made in enumerate(self.outputs) for tensor in made}

    def type(self, operator: int) -> str:
        """Return the name of an operator's type."""
        return self.file.operators[self.operators[operator].OpcodeIndex()]

    def input(self, operator: int, position: int) -> int:
        """Return the number of the tensor that is an operator's input."""
        inputs = self.inputs[operator]
        tensor = inputs[position] if position < len(inputs) else -1
        if not 0 <= tensor < len(self.tensors):
            raise ValueError(f"{self.type(operator)} lacks its input {position}")
        return tensor

    def parameter(self, tensor: int) -> int:
        """Follow a tensor back to the one that holds its data."""
        for _ in range(len(self.tensors)):
            if self.file.buffers[self.tensors[tensor].Buffer()].size:
                return tensor
            maker = self.makers.get(tensor)
            if maker is None:
                name = text_of(self.tensors[tensor].Name())
                raise SkipError(f"its weights are no constant: they come from the input {name!r}")
            if self.type(maker) not in COPIES:
                raise SkipError(f"its weights are made by {self.type(maker)}, not evaluated here")
            tensor = self.input(maker, 0)
        raise ValueError("operators make each other's inputs")

    def values(self, tensor: int) -> Array:
        """Return the data of a tensor as real numbers, in the tensor's shape."""
        table, shape = self.tensors[tensor], self.shapes[tensor]
        if table.Sparsity() is not None:
            raise SkipError("its weights are stored as a sparse tensor, which is not read")
        values = _decode(self.file.buffers[table.Buffer()], table.Type(), prod(shape))
        if values.size != prod(shape):
            raise ValueError(f"a tensor of shape {shape} has {values.size} values")
        values = values.reshape(shape)
        return values if values.dtype.kind == "f" else _dequantise(values, table.Quantization())


def _decode(data: NDArray[np.uint8], kind: int, count: int) -> Array:
    """Turn bytes into numbers: integers stay integers, bfloat16 becomes float32, exactly."""
    if kind in FLOATS:
        return np.frombuffer(data, FLOATS[kind])
    if kind in INTEGERS:
        return np.frombuffer(data, INTEGERS[kind])
    if kind == BFLOAT16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == INT4:  # two in a byte, the lower half first
        halves = np.stack([data << 4, data], axis=-1).ravel()[:count]
        return halves.view(np.int8) >> 4
    raise SkipError(f"its weights are of the tensor type {kind}, which is not read")


def _dequantise(integers: Array, quantisation: Table | None) -> Array:
    """Return ``scale * (integer - zero point)`` as float32, rounded once."""
    if quantisation is None or not quantisation.ScaleLength():
        raise SkipError("its weights are integers without a scale")
    if quantisation.DetailsType():
        raise SkipError("its weights are quantised in a custom way, which is not read")
    scale = quantisation.ScaleAsNumpy().astype(np.float64)
    zero = np.array(numbers(quantisation.ZeroPointAsNumpy()) or [0])
    # One scale for all, or one for every index of the quantised dimension.
    axis = quantisation.QuantizedDimension()
    if not {scale.size, zero.size} <= {1, integers.shape[axis]}:
        raise ValueError(f"{scale.size} scales do not fit a tensor of shape {integers.shape}")
    extents = [1] * integers.ndim
    extents[axis] = -1
    real = scale.reshape(extents) * (integers.astype(np.int64) - zero.reshape(extents))
    return real.astype(np.float32)


def text_of(name: bytes | None) -> str:
    """Return a name as text, empty if it is missing."""
    return (name or b"").decode("utf-8", "replace")


def numbers(vector: NDArray[np.integer[Any]] | int) -> list[int]:
    """Return a vector of a table as a list; flatbuffers return 0 for one that is missing."""
    return [] if isinstance(vector, int) else vector.tolist()

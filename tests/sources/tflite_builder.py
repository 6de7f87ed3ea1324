"""Writes small TensorFlow Lite files for the tests, with the schema that the reader uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

TYPES = {"float32": 0, "float16": 1, "uint8": 3, "int16": 7, "int8": 9, "uint16": 16}


@dataclass
class Model:
    """A model of one or more subgraphs, built up operator by operator."""

    buffers: list[bytes] = field(default_factory=lambda: [b""])
    graphs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = field(
        default_factory=lambda: [([], [])]
    )
    codes: list[int | str] = field(default_factory=list)
    outside: bool = False  # data behind the flatbuffer, as in files above 2 GB

    def tensor(
        self,
        shape: Sequence[int],
        data: Any = None,
        *,
        name: str = "",
        kind: int | None = None,
        buffer: int | None = None,
        **quantisation: Any,
    ) -> int:
        """Add a tensor, constant if it has data, and return its number."""
        if kind is None:
            kind = 0 if data is None else TYPES[data.dtype.name]
        if buffer is None:
            buffer = 0 if data is None else len(self.buffers)
            self.buffers += [] if data is None else [data.tobytes()]
        tensors = self.graphs[-1][0]
        tensors.append(
            {"shape": shape, "kind": kind, "buffer": buffer, "name": name, "q": quantisation}
        )
        return len(tensors) - 1

    def operator(
        self, code: int | str, inputs: Sequence[int], outputs: Sequence[int], **options: Any
    ) -> None:
        """Add an operator; a string is the code of a custom operator."""
        if code not in self.codes:
            self.codes.append(code)
        self.graphs[-1][1].append(
            {"code": self.codes.index(code), "in": inputs, "out": outputs, "options": options}
        )

    def write(self) -> bytes:
        """Return the file."""
        content = self._write([1 << 40] * len(self.buffers))
        if self.outside:  # the offsets do not change the size of the flatbuffer
            starts = np.cumsum([len(content), *map(len, self.buffers)])[:-1].tolist()
            content = self._write(starts) + b"".join(self.buffers)
        return content

    def _write(self, starts: list[int]) -> bytes:
        builder = flatbuffers.Builder(1024)
        buffers = _tables(
            builder, [self._buffer(builder, *x) for x in zip(self.buffers, starts, strict=True)]
        )
        codes = _tables(builder, [_code(builder, code) for code in self.codes])
        graphs = _tables(builder, [_graph(builder, self.codes, *graph) for graph in self.graphs])
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, codes)
        tflite.ModelAddSubgraphs(builder, graphs)
        tflite.ModelAddBuffers(builder, buffers)
        builder.Finish(tflite.ModelEnd(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, builder: Any, data: bytes, start: int) -> int:
        vector = builder.CreateByteVector(data) if data and not self.outside else None
        tflite.BufferStart(builder)
        if vector is not None:
            tflite.BufferAddData(builder, vector)
        elif data:
            tflite.BufferAddOffset(builder, start)
            tflite.BufferAddSize(builder, len(data))
        return tflite.BufferEnd(builder)


def _code(builder: Any, code: int | str) -> int:
    custom = builder.CreateString(code) if isinstance(code, str) else None
    number = 32 if isinstance(code, str) else code
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(number, 127))
    tflite.OperatorCodeAddBuiltinCode(builder, number)
    if custom is not None:
        tflite.OperatorCodeAddCustomCode(builder, custom)
    return tflite.OperatorCodeEnd(builder)


def _graph(builder: Any, codes: list[int | str], tensors: list[Any], operators: list[Any]) -> int:
    written = _tables(builder, [_tensor(builder, **tensor) for tensor in tensors])
    steps = _tables(builder, [_operator(builder, codes, x) for x in operators])
    used, made = ({i for x in operators for i in x[key]} for key in ("in", "out"))
    fed = [i for i, x in enumerate(tensors) if x["buffer"] == 0 and i in used - made]
    inputs, outputs = (
        builder.CreateNumpyVector(np.array(ends, np.int32)) for ends in (fed, sorted(made - used))
    )
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddInputs(builder, inputs)
    tflite.SubGraphAddOutputs(builder, outputs)
    tflite.SubGraphAddTensors(builder, written)
    tflite.SubGraphAddOperators(builder, steps)
    return tflite.SubGraphEnd(builder)


def _tensor(builder: Any, shape: Any, kind: int, buffer: int, name: str, q: dict[str, Any]) -> int:
    q = dict(q)
    sparse = q.pop("sparse", False)
    extents = builder.CreateNumpyVector(np.array(shape, np.int32))
    text = builder.CreateString(name) if name else None
    quantisation = _quantisation(builder, **q) if q else None
    if sparse:
        tflite.SparsityParametersStart(builder)
        sparsity = tflite.SparsityParametersEnd(builder)
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, extents)
    tflite.TensorAddType(builder, kind)
    tflite.TensorAddBuffer(builder, buffer)
    if text is not None:
        tflite.TensorAddName(builder, text)
    if quantisation is not None:
        tflite.TensorAddQuantization(builder, quantisation)
    if sparse:
        tflite.TensorAddSparsity(builder, sparsity)
    return tflite.TensorEnd(builder)


def _quantisation(builder: Any, scale: Any, zero: Any = (), axis: int = 0) -> int:
    scales = builder.CreateNumpyVector(np.array(scale, np.float32))
    zeros = builder.CreateNumpyVector(np.array(zero, np.int64))
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scales)
    tflite.QuantizationParametersAddZeroPoint(builder, zeros)
    tflite.QuantizationParametersAddQuantizedDimension(builder, axis)
    return tflite.QuantizationParametersEnd(builder)


def _operator(builder: Any, codes: list[int | str], operator: dict[str, Any]) -> int:
    kinds = {3: "Conv2DOptions", 4: "DepthwiseConv2DOptions"}
    kind = kinds.get(codes[operator["code"]])  # type: ignore[call-overload]
    options = _options(builder, kind, **operator["options"]) if kind else None
    inputs = builder.CreateNumpyVector(np.array(operator["in"], np.int32))
    outputs = builder.CreateNumpyVector(np.array(operator["out"], np.int32))
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, operator["code"])
    tflite.OperatorAddInputs(builder, inputs)
    tflite.OperatorAddOutputs(builder, outputs)
    if kind:
        tflite.OperatorAddBuiltinOptionsType(builder, getattr(tflite.BuiltinOptions, kind))
        tflite.OperatorAddBuiltinOptions(builder, options)
    return tflite.OperatorEnd(builder)


def _options(
    builder: Any,
    kind: str,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    multiplier: int = 1,
) -> int:
    getattr(tflite, f"{kind}Start")(builder)
    values = {
        "Padding": 1,  # VALID
        "StrideH": stride[0],
        "StrideW": stride[1],
        "DilationHFactor": dilation[0],
        "DilationWFactor": dilation[1],
    } | ({"DepthMultiplier": multiplier} if kind == "DepthwiseConv2DOptions" else {})
    for name, value in values.items():
        getattr(tflite, f"{kind}Add{name}")(builder, value)
    return int(getattr(tflite, f"{kind}End")(builder))


def _tables(builder: Any, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())

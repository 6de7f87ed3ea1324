"""Core ML programs (MIL): convolutions, and constants in the program or in a file of blobs."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array, symmetric
from keyfilters.sources.content import beside, mapped
from keyfilters.sources.wire import Message

__all__ = ["offer_program"]

TYPES = {
    10: "<f2", 11: "<f4", 12: "<f8", 13: "bf16", 21: "i1", 22: "<i2", 23: "<i4", 24: "<i8",
    31: "u1", 32: "<u2", 33: "<u4", 34: "<u8",
}  # fmt: skip
SENTINEL = 0xDEADBEEF
MOST_BLOCKS = 1000


class _Program:
    """The operations of a block by the names of what they make."""

    def __init__(self, block: Message, path: Path) -> None:
        self.path = path
        self.operations = block.messages(3)
        self.makers = {out.text(1): op for op in self.operations for out in op.messages(3)}

    def value(self, operation: Message, name: str) -> tuple[Message | None, Hashable]:
        """Return the constant value of an input, or None, and what tells it from others."""
        inputs = operation.mapping(2)
        if name not in inputs:
            return None, None
        binding = inputs[name].message(1)
        if 2 in binding:
            return binding.message(2), None
        made = self.makers.get(binding.text(1))
        if made is None:
            return None, None
        if made.text(1) != "const":
            raise SkipError(f"its weights are made by {made.text(1)}, which is not evaluated")
        return made.mapping(5).get("val"), binding.text(1)

    def ints(self, operation: Message, name: str) -> list[int]:
        """Return a constant input of integers."""
        try:
            value, _ = self.value(operation, name)
            return [] if value is None else [int(x) for x in _array(value, self.path)[0].ravel()]
        except SkipError:
            return []

    def weight(self, operation: Message, name: str = "weight") -> tuple[Message, Message | None]:
        """Return the value of the weights, and the operation that unpacks them, if there is one."""
        binding = operation.mapping(2)[name].message(1)
        made = self.makers.get(binding.text(1))
        if made is not None and made.text(1).startswith("constexpr_"):
            return made, made
        value, _ = self.value(operation, name)
        if value is None:
            raise SkipError("its weights are no constant: they are an input")
        return value, None


def offer_program(collector: Collector, program: Message, path: Path) -> None:
    """Offer the convolutions of a program, function by function."""
    for function in program.mapping(2).values():
        for block in function.mapping(3).values():
            for inner in _blocks(block):
                _offer_block(collector, _Program(inner, path))


def _blocks(block: Message) -> Iterator[Message]:
    stack = [block]
    for _ in range(MOST_BLOCKS):
        if not stack:
            return
        yield (one := stack.pop())
        stack += [inner for op in one.messages(3) for inner in op.messages(4)]


def _offer_block(collector: Collector, program: _Program) -> None:
    for operation in program.operations:
        kind = operation.text(1)
        if kind not in ("conv", "conv_transpose"):
            continue
        outputs = operation.messages(3)
        name = outputs[0].text(1) if outputs else kind
        try:
            _offer(collector, program, operation, name)
        except SkipError as error:
            collector.skip(name, str(error))


def _offer(collector: Collector, program: _Program, operation: Message, name: str) -> None:
    """Offer a convolution, ``(out, in / group, *kernel)``, transposed ``(in, out / group, …)``."""
    transposed = operation.text(1) == "conv_transpose"
    value, unpacking = program.weight(operation)
    shape, load = _weights(program, value, unpacking)
    taps = len(shape) - 2
    pad_type, _ = program.value(operation, "pad_type")
    said = "" if pad_type is None else _text(pad_type)
    pads = program.ints(operation, "pad")  # begin and end of every axis in turn
    padding = symmetric([*pads[::2], *pads[1::2]]) if said in ("custom", "") else None
    geometry = Geometry(
        (program.ints(operation, "groups") or [1])[0],
        transposed,
        tuple(program.ints(operation, "strides") or [1] * taps),
        tuple(program.ints(operation, "dilations") or [1] * taps),
        "same" if said.startswith("same") else (0,) * taps if said == "valid" else padding,
    )
    layout = ("io" if transposed else "oi") + "zyx"[3 - taps :]
    binding = operation.mapping(2)["weight"].message(1).text(1)
    collector.kernel(name, layout, shape, load, geometry, identity=binding or None)


def _weights(program: _Program, value: Message, unpacking: Message | None):  # type: ignore[no-untyped-def]
    if unpacking is None:
        shape = _shape(value)
        return shape, lambda: _array(value, program.path)[0]
    held = unpacking.mapping(5) | {
        name: x.message(1).message(2) for name, x in unpacking.mapping(2).items()
    }
    for name, argument in unpacking.mapping(2).items():
        made = program.makers.get(argument.message(1).text(1))
        if made is not None and made.text(1) == "const":
            held[name] = made.mapping(5)["val"]

    def array(name: str) -> Array:
        return _array(held[name], program.path)[0]

    kind = unpacking.text(1)
    if kind == "constexpr_affine_dequantize":
        shape = _shape(held["quantized_data"])

        def load() -> Array:
            scale, zero = array("scale").astype(np.float64), array("zero_point").astype(np.float64)
            axis = int(array("axis").ravel()[0])
            extents = [-1 if i == axis else 1 for i in range(len(shape))]
            data = array("quantized_data").astype(np.float64)
            return ((data - zero.reshape(extents)) * scale.reshape(extents)).astype(np.float32)

        return shape, load
    if kind == "constexpr_lut_to_dense":
        shape = tuple(int(x) for x in array("shape"))

        def load() -> Array:
            table, count = array("lut"), prod(shape)
            bits = max(int(table.size).bit_length() - 1, 1)
            packed = array("indices").view(np.uint8).ravel()
            flags = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
            return table[flags @ (1 << np.arange(bits))].reshape(shape)

        return shape, load
    if kind == "constexpr_cast":
        shape = _shape(held["source_val"])
        return shape, lambda: array("source_val")
    raise SkipError(f"its weights are made by {kind}, which is not evaluated")


def _shape(value: Message) -> tuple[int, ...]:
    dimensions = value.message(2).message(1).messages(3)
    return tuple(x.message(1).number(1) for x in dimensions)


def _text(value: Message) -> str:
    return next(iter(value.message(3).message(1).message(4).texts(1)), "")


def _array(value: Message, path: Path) -> tuple[Array, str]:
    """Return a constant's value in its own shape, and its type."""
    kind = TYPES.get(value.message(2).message(1).number(1), "")
    shape = _shape(value)
    if not kind:
        raise SkipError("its weights are of a type that is not read")
    if 5 in value:
        data = _blob(value.message(5), path)
        values = float_array(data, kind)
    else:
        tensor = value.message(3).message(1)
        if 7 in tensor:
            values = float_array(tensor.message(7).bytes(1), kind)
        elif 1 in tensor:
            values = tensor.message(1).floats(1)
        elif 6 in tensor:
            values = tensor.message(6).floats(1, "<f8")
        else:
            field = next((x for x in (2, 5, 3) if x in tensor), 2)
            values = np.array(tensor.message(field).numbers(1))
    if values.size != prod(shape):
        raise ValueError(f"{values.size} values for a constant of shape {shape}")
    return values.reshape(shape), kind


def _blob(reference: Message, path: Path) -> memoryview:
    """Return the bytes of a constant in a file of blobs inside the package."""
    name = reference.text(1).removeprefix("@model_path/")
    data = mapped(beside(path, PurePosixPath(name).as_posix()))
    at = reference.number(2)
    if at + 24 > len(data):
        raise ValueError(f"{name} is cut short")
    mark, _, size, start = struct.unpack_from("<IIQQ", data, at)
    if mark != SENTINEL or start + size > len(data):
        raise ValueError(f"{name} is damaged or cut short")
    return data[start : start + size]

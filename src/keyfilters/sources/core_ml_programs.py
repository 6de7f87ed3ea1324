"""Core ML programs (MIL): convolutions, and constants in the program or in a file of blobs."""

from __future__ import annotations

import struct
from collections import ChainMap
from collections.abc import Hashable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.sources.collect import (
    Array,
    Collector,
    Geometry,
    Load,
    SkipError,
    float_array,
    symmetric,
)
from keyfilters.sources.content import beside, mapped
from keyfilters.sources.wire import Message

__all__ = ["offer_program"]

TYPES = {
    10: "<f2", 11: "<f4", 12: "<f8", 13: "bf16", 21: "i1", 22: "<i2", 23: "<i4", 24: "<i8",
    31: "u1", 32: "<u2", 33: "<u4", 34: "<u8",
}  # fmt: skip
SENTINEL = 0xDEADBEEF
MOST = 6  # numbers that tell a geometry: the pads of three axes


class _Scope:
    """The operations of a block, and those that it sees by the names of what they make."""

    def __init__(self, block: Message, path: Path, outer: ChainMap[str, Message]) -> None:
        self.path = path
        self.operations = block.messages(3)
        self.makers = outer.new_child(
            {out.text(1): op for op in self.operations for out in op.messages(3)}
        )

    def maker(self, operation: Message, name: str) -> Message | None:
        """Return the operation that makes an input, None if no operation does."""
        binding = operation.mapping(2)[name].message(1)
        return None if 2 in binding else self.makers.get(binding.text(1))

    def value(self, operation: Message, name: str) -> Message | None:
        """Return a constant that an operation takes, None if it takes none of this name.

        Raises:
            SkipError: it is no constant.
        """
        if name in (held := operation.mapping(5)):  # where ``constexpr_…`` had them at first
            return held[name]
        if name not in (inputs := operation.mapping(2)):
            return None
        if 2 in (binding := inputs[name].message(1)):
            return binding.message(2)
        made = self.maker(operation, name)
        if made is None:
            raise SkipError("its weights are no constant: they are an input")
        if made.text(1) != "const":
            raise SkipError(f"its weights are made by {made.text(1)}, which is not evaluated")
        return made.mapping(5)["val"]

    def told(self, operation: Message, name: str, default: Any) -> Any:
        """Return an input of integers or of text, None if it is no constant that is read."""
        try:
            value = self.value(operation, name)
            if value is None:
                return default
            if prod(_shape(value)) > MOST:
                return None
            texts = value.message(3).message(1).message(4).texts(1)
            return texts[0] if texts else tuple(int(x) for x in _array(value, self.path).ravel())
        except SkipError:
            return None


def offer_program(collector: Collector, program: Message, path: Path) -> None:
    """Offer the convolutions of a program, function by function."""
    for function in program.mapping(2).values():
        for block in function.mapping(3).values():
            _offer_block(collector, block, path, ChainMap())


def _offer_block(
    collector: Collector, block: Message, path: Path, outer: ChainMap[str, Message]
) -> None:
    scope = _Scope(block, path, outer)
    for operation in scope.operations:
        kind, outputs = operation.text(1), operation.messages(3)
        if kind in ("conv", "conv_transpose"):
            name = outputs[0].text(1) if outputs else kind
            try:
                _offer(collector, scope, operation, name)
            except SkipError as error:
                collector.skip(name, str(error))
        for inner in operation.messages(4):
            _offer_block(collector, inner, path, scope.makers)


def _offer(collector: Collector, scope: _Scope, operation: Message, name: str) -> None:
    """Offer a convolution, ``(out, in / group, *kernel)``, transposed ``(in, out / group, …)``."""
    transposed = operation.text(1) == "conv_transpose"
    made = scope.maker(operation, "weight")
    identity: Hashable = made
    if made is not None and made.text(1).startswith("constexpr_"):
        shape, load = _unpacked(scope, made)
    else:
        value = _needed(scope, operation, "weight")
        shape, load = _shape(value), lambda: _array(value, scope.path)
        if 5 in value:  # functions of one program share their blobs
            identity = (value.message(5).text(1), value.message(5).number(2))
    taps = len(shape) - 2
    groups = scope.told(operation, "groups", (1,))
    geometry = Geometry(
        groups[0] if groups else None,
        transposed,
        scope.told(operation, "strides", (1,) * taps),
        scope.told(operation, "dilations", (1,) * taps),
        _padding(scope, operation, taps),
    )
    layout = ("io" if transposed else "oi") + "zyx"[3 - taps :]
    collector.kernel(name, layout, shape, load, geometry, identity=identity)


def _padding(scope: _Scope, operation: Message, taps: int) -> tuple[int, ...] | str | None:
    said = scope.told(operation, "pad_type", "valid")
    if said in ("same", "same_lower"):
        return "same"
    if said == "valid":
        return (0,) * taps
    pads = scope.told(operation, "pad", (0,) * taps * 2) if said == "custom" else None
    return symmetric([*pads[::2], *pads[1::2]]) if pads else None  # begin and end axis by axis


def _needed(scope: _Scope, operation: Message, name: str) -> Message:
    value = scope.value(operation, name)
    if value is None:  # a later form of the operation
        kind = operation.text(1)
        raise SkipError(f"its weights are made by {kind} without {name}, which is not evaluated")
    return value


def _unpacked(scope: _Scope, operation: Message) -> tuple[tuple[int, ...], Load]:
    """Return the shape of weights that are stored packed, and what unpacks them."""

    def array(name: str) -> Array:
        return _array(_needed(scope, operation, name), scope.path)

    kind = operation.text(1)
    if kind == "constexpr_affine_dequantize":
        shape = _shape(_needed(scope, operation, "quantized_data"))

        def scaled() -> Array:
            scale, zero = array("scale").astype(np.float64), array("zero_point").astype(np.float64)
            extents = [1] * len(shape)
            extents[int(array("axis").ravel()[0])] = -1
            data = array("quantized_data").astype(np.float64)
            return ((data - zero.reshape(extents)) * scale.reshape(extents)).astype(np.float32)

        return shape, scaled
    if kind == "constexpr_lut_to_dense":
        shape = tuple(int(x) for x in array("shape"))

        def looked_up() -> Array:
            table, count = array("lut"), prod(shape)
            bits = max(int(table.size).bit_length() - 1, 1)
            packed = array("indices").astype(np.uint8).ravel()
            flags = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
            return table[flags @ (1 << np.arange(bits))].reshape(shape)

        return shape, looked_up
    if kind == "constexpr_cast":
        return _shape(_needed(scope, operation, "source_val")), lambda: array("source_val")
    raise SkipError(f"its weights are made by {kind}, which is not evaluated")


def _shape(value: Message) -> tuple[int, ...]:
    dimensions = value.message(2).message(1).messages(3)
    return tuple(x.message(1).number(1) for x in dimensions)


def _array(value: Message, path: Path) -> Array:
    """Return a constant's value in its own shape."""
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
    return values.reshape(shape)


def _blob(reference: Message, path: Path) -> memoryview:
    """Return the bytes of a constant in a file of blobs inside the package."""
    name = reference.text(1).removeprefix("@model_path/")
    data = mapped(beside(path, name))
    at = reference.number(2)
    if at + 24 > len(data):
        raise ValueError(f"{name} is cut short")
    mark, _, size, start = struct.unpack_from("<IIQQ", data, at)
    if mark != SENTINEL or start + size > len(data):
        raise ValueError(f"{name} is damaged or cut short")
    return data[start : start + size]

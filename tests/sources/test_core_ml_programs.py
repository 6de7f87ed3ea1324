"""Core ML programs: constants and what unpacks them, blocks, functions, and files of blobs.

Field numbers are those of ``MIL.proto`` of coremltools; the file of blobs is laid out as its
``StorageFormat.hpp`` tells.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from tests.sources.encoders import message, packed
from tests.sources.tiny_models import FILTERS, OIHW

RNG = np.random.default_rng(4)
OTHER = RNG.normal(size=(4, 1, 3, 3)).astype(np.float32)
HALF = OIHW.astype(np.float16)
BFLOAT = (OIHW.view(np.uint32) >> 16).astype(np.uint16)
KINDS = {
    "float16": 10, "float32": 11, "float64": 12, "int8": 21, "int32": 23, "int64": 24, "uint8": 31,
    "uint16": 13, "uint32": 33,
}  # fmt: skip
FIELDS = {"float32": 1, "int32": 2, "int64": 5, "float64": 6}  # of an immediate value; 7 is bytes
INT4 = 25
Fields = dict[int, Any]


# ------------------------------------------------------------------ writing programs


def value(array: Any, kind: int | None = None, place: int | None = None) -> Fields:
    """Return a constant, in the program or at a place of the file of blobs; uint16 is bfloat16."""
    array = np.asarray(array)
    kind = KINDS[array.dtype.name] if kind is None else kind
    told = {2: {1: {1: kind, 2: array.ndim, 3: [{1: {1: x}} for x in array.shape]}}}
    if place is not None:
        return told | {5: {1: "@model_path/weights/weight.bin", 2: place}}
    field = FIELDS.get(array.dtype.name, 7)
    held = packed(array.ravel().tolist()) if field in (2, 5) else array.tobytes()
    return told | {3: {1: {field: {1: held}}}}


def text(words: str) -> Fields:
    return {2: {1: {1: 2}}, 3: {1: {4: {1: words}}}}


def ints(*numbers: int) -> Fields:
    return value(np.array(numbers, np.int32))


def operation(
    kind: str, made: str, inputs: Mapping[str, Any] = {}, attributes: Mapping[str, Any] = {}
) -> Fields:
    """Return an operation, whose inputs are names or constants."""
    bindings = [
        {1: key, 2: {1: {1: x} if isinstance(x, str) else {2: x}}} for key, x in inputs.items()
    ]
    held = {"name": text(made), **attributes}
    return {1: kind, 2: bindings, 3: {1: made}, 5: [{1: key, 2: x} for key, x in held.items()]}


def const(made: str, held: Fields) -> Fields:
    return operation("const", made, attributes={"val": held})


def conv(made: str, weight: Any, **changes: Any) -> Fields:
    inputs = {"x": "x", "weight": weight, "groups": value(np.int32(4))} | changes
    return operation("conv", made, {k: v for k, v in inputs.items() if v is not None})


def read(
    folder: Path, *operations: Fields, blobs: bytes = b"", more: Mapping[str, list[Fields]] = {}
) -> kf.FilterBank:
    """Write a package whose program has one function, or more, and read it."""
    root = folder / "net.mlpackage"
    (root / "Data" / "weights").mkdir(parents=True)
    content = {"itemInfoEntries": {"a": {"path": "m.mlmodel"}}, "rootModelIdentifier": "a"}
    (root / "Manifest.json").write_text(json.dumps(content))
    (root / "Data" / "weights" / "weight.bin").write_bytes(blobs)
    functions = [
        {1: name, 2: {2: "CoreML6", 3: {1: "CoreML6", 2: {3: held}}}}
        for name, held in {"main": list(operations), **more}.items()
    ]
    program = {1: 1, 2: functions}
    (root / "Data" / "m.mlmodel").write_bytes(message({1: 7, 2: {1: {1: "x"}}, 502: program}))
    return kf.read(root)


def blobs_of(*arrays: Any) -> tuple[bytes, list[int]]:
    """Return a file of blobs, and where each array's description begins."""
    content, places = struct.pack("<II", len(arrays), 2) + bytes(56), []
    for array in arrays:
        places.append(len(content))
        start = len(content) + 64
        content += struct.pack("<IIQQ", 0xDEADBEEF, 2, array.nbytes, start) + bytes(40)
        content += array.tobytes() + bytes(-array.nbytes % 64)
    return content, places


# ------------------------------------------------------------------ constants

BLOBS, PLACES = blobs_of(OTHER, OIHW, HALF)
CONSTANTS: dict[str, tuple[Fields, Any]] = {
    "float32": (value(OIHW), OIHW),
    "float16": (value(HALF), HALF),
    "bfloat16": (value(BFLOAT), (BFLOAT.astype(np.uint32) << 16).view(np.float32)),
    "float64": (value(OIHW.astype(np.float64)), OIHW),
    "float32 in a file": (value(OIHW, place=PLACES[1]), OIHW),
    "float16 in a file": (value(HALF, place=PLACES[2]), HALF),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("way", CONSTANTS)
def test_constants_of_every_type(tmp_path: Path, way: str, named: bool) -> None:
    held, filters = CONSTANTS[way]
    made = conv("dw", "w" if named else held)
    bank = read(tmp_path, *([const("w", held)] if named else []), made, blobs=BLOBS)
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, filters[:, 0].astype(np.float32))
    assert layer.name == "dw" and ("float64" in layer.note) == (way == "float64")


# ------------------------------------------------------------------ what unpacks constants


def in_bits(codes: Any, bits: int) -> Any:
    """Pack numbers into bits, the lowest bit of each first."""
    flags = [int(x) >> i & 1 for x in codes.ravel() for i in range(bits)]
    flags += [0] * (-len(flags) % 8)
    packed_bytes = [
        sum(flag << i for i, flag in enumerate(flags[at : at + 8]))
        for at in range(0, len(flags), 8)
    ]
    return np.array(packed_bytes, np.uint8)


def table(bits: int, dtype: Any = np.float32) -> tuple[str, dict[str, Fields], Any]:
    codes = RNG.integers(0, 2**bits, size=(4, 1, 3, 3))
    lut = RNG.normal(size=2**bits).astype(dtype)
    shape = value(np.array(codes.shape, np.uint32))
    held = {"indices": value(in_bits(codes, bits)), "lut": value(lut), "shape": shape}
    return "constexpr_lut_to_dense", held, lut[codes]


def affine(codes: Any, scale: Any, zero: Any, axis: int) -> tuple[str, dict[str, Fields], Any]:
    along = [-1 if i == axis % 4 else 1 for i in range(4)]
    made = (codes.astype(float) - np.reshape(zero, along)) * np.reshape(scale, along)
    held = {"quantized_data": codes, "scale": scale, "zero_point": zero, "axis": np.int32(axis)}
    return "constexpr_affine_dequantize", {k: value(v) for k, v in held.items()}, made


UNSIGNED = RNG.integers(0, 256, size=(4, 1, 3, 3)).astype(np.uint8)
SIGNED = UNSIGNED.astype(np.int8)
SCALES = np.array([0.5, 2.0, 0.125, 1.0], np.float32)  # powers of two: exact
PACKED = {
    "a scale a filter": affine(UNSIGNED, SCALES, np.array([128, 0, 255, 7], np.uint8), 0),
    "axis counted from the end": affine(SIGNED, SCALES, np.array([-9, 0, 127, 7], np.int8), -4),
    "a scale a row": affine(UNSIGNED, SCALES[:3], np.zeros(3, np.uint8), 2),
    "one scale": affine(SIGNED, np.float16(0.25), np.int8(-3), 0),
    "cast": ("constexpr_cast", {"source_val": value(HALF), "output_dtype": text("fp32")}, HALF),
    "table of float16": table(4, np.float16),
} | {f"table, {bits} bits": table(bits) for bits in (1, 2, 4, 6, 8)}


@pytest.mark.parametrize("where", ["attributes", "inputs", "constants"])
@pytest.mark.parametrize("way", PACKED)
def test_packed_weights_are_unpacked(tmp_path: Path, way: str, where: str) -> None:
    kind, held, filters = PACKED[way]
    constants = [const(key, x) for key, x in held.items()] if where == "constants" else []
    inputs = {key: key if constants else x for key, x in held.items()}
    made = operation(kind, "w", {}, held) if where == "attributes" else operation(kind, "w", inputs)
    [layer] = read(tmp_path, *constants, made, conv("dw", "w")).layers
    np.testing.assert_array_equal(layer.weight, filters[:, 0].astype(np.float32))


_, LATER, _ = table(4)
del LATER["shape"]  # as from iOS 18 on, where the shape is that of the indices
SKIPPED: dict[str, tuple[list[Fields], str]] = {
    "an input": ([], "they are an input"),
    "computed": ([operation("mul", "w", {"x": "a", "y": "b"})], "made by mul"),
    "sparse": ([operation("constexpr_sparse_to_dense", "w")], "made by constexpr_sparse"),
    "a later table": ([operation("constexpr_lut_to_dense", "w", LATER)], "made by constexpr_lut"),
    "packed twice": (
        [
            operation("constexpr_lut_to_dense", "a", LATER),
            operation("constexpr_affine_dequantize", "w", {"quantized_data": "a"}),
        ],
        "made by constexpr_lut",
    ),
    "four bits": ([const("w", value(UNSIGNED, INT4))], "type"),
}


@pytest.mark.parametrize("way", SKIPPED)
def test_weights_that_are_not_evaluated_are_named(tmp_path: Path, way: str) -> None:
    operations, words = SKIPPED[way]
    bank = read(tmp_path, *operations, conv("dw", "w"), conv("next", value(OTHER)))
    assert [x.name for x in bank.layers] == ["next"]
    [(name, reason)] = bank.skipped
    assert name == "net/dw" and words in reason


# ------------------------------------------------------------------ geometry

PADS = ints(1, 2, 3, 4)  # before and after, axis by axis
MANY = value(np.zeros(2**10, np.int32)) | {3: b""}  # more than axes need: they are not looked at


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ((1, 1), (1, 1), (0, 0))),
        ({"strides": ints(2, 1), "dilations": ints(3, 2)}, ((2, 1), (3, 2), (0, 0))),
        ({"pad_type": text("valid")}, ((1, 1), (1, 1), (0, 0))),
        ({"pad_type": text("same")}, ((1, 1), (1, 1), "same")),
        ({"pad_type": text("same_lower")}, ((1, 1), (1, 1), "same")),
        ({"pad_type": text("custom")}, ((1, 1), (1, 1), (0, 0))),
        ({"pad_type": text("custom"), "pad": ints(1, 1, 2, 2)}, ((1, 1), (1, 1), (1, 2))),
        ({"pad_type": text("custom"), "pad": PADS}, ((1, 1), (1, 1), (1, 3, 2, 4))),
        ({"strides": "s", "pad_type": text("custom"), "pad": "p"}, (None, (1, 1), None)),
        ({"dilations": value(np.array([2, 2])), "pad_type": "p"}, ((1, 1), (2, 2), None)),
        ({"strides": MANY}, (None, (1, 1), (0, 0))),
    ],
)
def test_geometry(tmp_path: Path, changes: dict[str, Any], expected: Any) -> None:
    """What is left out has its default; what an input tells at run time is not told."""
    [layer] = read(tmp_path, conv("dw", value(OIHW), **changes)).layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert (layer.stride, layer.dilation, layer.padding) == expected


def test_other_convolutions_are_named(tmp_path: Path) -> None:
    row = RNG.normal(size=(4, 1, 5)).astype(np.float32)
    dense, block = np.zeros((4, 3, 3, 3), np.float32), np.zeros((4, 1, 2, 3, 3), np.float32)
    up = conv("up", value(np.zeros((4, 2, 3, 3), np.float32))) | {1: "conv_transpose"}
    bank = read(
        tmp_path,
        conv("row", value(row)),
        conv("dense", value(dense), groups=None),
        conv("block", value(block)),
        up,
    )
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight[:, 0], row[:, 0])
    assert (layer.ndim, layer.size) == (1, (1, 5))
    assert bank.skipped == [
        ("net/dense", "dense 3×3 convolution of 3 channels"),
        ("net/block", "3-D depthwise convolution"),
        ("net/up", "transposed depthwise convolution"),
    ]


# ------------------------------------------------------------------ blocks and functions


def test_blocks_are_read_in_order_and_see_the_constants_around_them(tmp_path: Path) -> None:
    inner = conv("then", "w")
    blocks = [{3: [inner]}, {3: [const("v", value(OTHER + 1)), conv("else", "v")]}]
    around = operation("cond", "c", {"pred": "p"}) | {4: blocks}
    bank = read(tmp_path, const("w", value(OIHW)), around, conv("last", value(OTHER)))
    assert [x.name for x in bank.layers] == ["then", "else", "last"]
    for layer, filters in zip(bank.layers, (OIHW, OTHER + 1, OTHER), strict=True):
        np.testing.assert_array_equal(layer.weight, filters[:, 0])


def test_constants_of_one_name_in_two_functions_are_two(tmp_path: Path) -> None:
    second = [const("w", value(OTHER)), conv("b", "w")]
    bank = read(tmp_path, const("w", value(OIHW)), conv("a", "w"), more={"second": second})
    assert [x.name for x in bank.layers] == ["a", "b"] and not bank.skipped
    np.testing.assert_array_equal(bank.layers[1].weight, OTHER[:, 0])


def test_shared_weights_are_counted_once(tmp_path: Path) -> None:
    small, large = value(OIHW), value(OTHER, place=PLACES[0])
    operations = [const("w", small), conv("a", "w"), conv("b", "w"), conv("c", large)]
    bank = read(tmp_path, *operations, blobs=BLOBS, more={"other": [conv("d", large)]})
    assert [x.name for x in bank.layers] == ["a", "c"]
    assert [name for name, why in bank.skipped if "shares" in why] == ["net/b", "net/d"]


# ------------------------------------------------------------------ damage


def changed(at: int, new: bytes) -> bytes:
    return BLOBS[:at] + new + BLOBS[at + len(new) :]


STORED = value(OIHW, place=PLACES[1])
DAMAGED: dict[str, tuple[Fields, bytes]] = {
    "no file content": (STORED, b""),
    "cut inside a description": (STORED, BLOBS[: PLACES[1] + 23]),
    "cut inside the numbers": (STORED, BLOBS[: PLACES[1] + 64 + OIHW.nbytes - 1]),
    "another mark": (STORED, changed(PLACES[1], b"\0")),
    "another size": (STORED, changed(PLACES[1] + 8, struct.pack("<Q", OIHW.nbytes - 4))),
    "outside its folder": (STORED | {5: {1: "@model_path/../secret", 2: 64}}, BLOBS),
    "too few numbers": (value(OIHW) | {3: {1: {1: {1: OIHW[1:].tobytes()}}}}, BLOBS),
    "no numbers": (value(OIHW) | {3: {1: b""}}, BLOBS),
}


@pytest.mark.parametrize("way", DAMAGED)
def test_damaged_constants_are_refused(tmp_path: Path, way: str) -> None:
    held, blobs = DAMAGED[way]
    with pytest.raises(SourceError, match="net"):
        read(tmp_path, conv("dw", held), blobs=blobs)


@pytest.mark.parametrize(
    ("way", "key", "new"),
    [
        ("one scale", "axis", value(np.int32(4))),
        ("a scale a filter", "scale", value(SCALES[:3])),
        ("table, 4 bits", "indices", value(np.zeros(17, np.uint8))),
        ("table, 4 bits", "lut", value(np.zeros(0, np.float32))),
    ],
)
def test_damaged_packings_are_refused(tmp_path: Path, way: str, key: str, new: Fields) -> None:
    kind, held, _ = PACKED[way]
    with pytest.raises(SourceError, match="net"):
        read(tmp_path, operation(kind, "w", {}, held | {key: new}), conv("dw", "w"))

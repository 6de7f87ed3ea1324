"""Graphs of TensorFlow: types of constants, geometry, functions, damage."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.sources import tensorflow_graphs
from keyfilters.sources.tensorflow_graphs import read_frozen_graph
from tests.sources.encoders import message, packed
from tests.sources.tiny_models import FILTERS, HWCM, HWIO, node, tensor_proto

Node = dict[int, Any]
OTHER = np.ascontiguousarray(HWCM[::-1] * 2)
OTHERS = np.ascontiguousarray(np.moveaxis(OTHER[..., 0], -1, 0))


def const(name: str, value: Any) -> Node:
    """A constant of floats, or of what a TensorProto's fields say."""
    return node(
        name, "Const", [], value={8: value if isinstance(value, dict) else tensor_proto(value)}
    )


def conv(name: str = "dw", weight: str = "w", x: str = "x", op: str = "", **ints: Any) -> Node:
    numbers = {"strides": [1, 1, 1, 1]} | ints
    lists = {key: {1: {3: packed(value)}} for key, value in numbers.items()}
    return node(name, op or "DepthwiseConv2dNative", [x, weight], padding={2: "VALID"}, **lists)


def function(name: str, arguments: Sequence[str], nodes: list[Node]) -> Node:
    return {1: {1: name, 2: [{1: x} for x in arguments]}, 3: nodes}


def write(folder: Path, nodes: list[Node], functions: Sequence[Node] = ()) -> Path:
    graph = {1: [node("x", "Placeholder", []), *nodes], 2: {1: list(functions)}}
    (folder / "net.pb").write_bytes(message(graph))
    return folder / "net.pb"


def frozen(folder: Path, nodes: list[Node], functions: Sequence[Node] = ()) -> kf.FilterBank:
    return read_frozen_graph(write(folder, nodes, functions), "net")


def equal(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


# ------------------------------------------------------------------ constants

HALF = HWCM.astype(np.float16)
BITS = (HWCM.view(np.uint32) >> 16).astype(np.uint16)
CONSTANTS: dict[str, tuple[Node, Any]] = {  # TensorProto: its type, its field of values
    "float_val": ({1: 1, 5: HWCM.tobytes()}, HWCM),
    "float_val that repeats": ({1: 1, 5: struct.pack("<2f", 3, 0.5)}, None),
    "double_val": ({1: 2, 6: HWCM.astype(np.float64).tobytes()}, HWCM),
    "half_val": ({1: 19, 13: packed(HALF.view(np.uint16).ravel().tolist())}, HALF),
    "half_val of bfloat16": (
        {1: 14, 13: packed(BITS.ravel().tolist())},
        (BITS.astype(np.uint32) << 16).view(np.float32),
    ),
    "no values": ({1: 1}, np.zeros_like(HWCM)),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_with_values_in_fields_of_their_types(tmp_path: Path, kind: str) -> None:
    fields, expected = CONSTANTS[kind]
    if expected is None:  # the last value stands for all behind it
        expected = np.full(HWCM.shape, 0.5, np.float32)
        expected.flat[0] = 3
    shape = {2: [{1: x} for x in HWCM.shape]}
    [layer] = frozen(tmp_path, [const("w", {**fields, 2: shape}), conv()]).layers
    equal(layer.weight, np.moveaxis(expected[..., 0].astype(np.float32), -1, 0))


def made_by(*ops: str) -> list[Node]:
    names = ["v", *(f"made{i}" for i in range(1, len(ops))), "w"]
    return [node(b, op, [a]) for op, a, b in zip(ops, names[:-1], names[1:], strict=True)]


SKIPPED: dict[str, tuple[list[Node], str]] = {
    "of quantised integers": ([const("w", {**tensor_proto(HWCM), 1: 11})], "type 11"),
    "from nowhere": ([], "no constant"),
    "kept elsewhere": ([node("w", "Const", [])], "not in the file"),
    "computed": ([const("v", HWCM), *made_by("Exp")], "Exp"),
    "far away": ([const("v", HWCM), *made_by(*["Identity"] * 201)], "200"),
    "variable elsewhere": ([node("w", "VarHandleOp", [], shared_name={2: "v"})], "'v'"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_weights_that_are_not_read_say_why(tmp_path: Path, case: str) -> None:
    nodes, reason = SKIPPED[case]
    bank = frozen(tmp_path, [*nodes, conv(), conv("other", "o"), const("o", OTHER)])
    assert [x.name for x in bank.layers] == ["other"]
    [(name, why)] = bank.skipped
    assert name == "net/dw" and reason in why


def test_operators_that_are_not_read_are_named(tmp_path: Path) -> None:
    gradient = conv("back", op="DepthwiseConv2dNativeBackpropFilter")
    bank = frozen(tmp_path, [const("w", HWCM), conv(op="QuantizedConv2D"), gradient])
    assert [name for name, _ in bank.skipped] == ["net/dw"]
    assert "QuantizedConv2D" in bank.skipped[0][1]


# ------------------------------------------------------------------ geometry


def block(numbers: Any, kind: int = 3) -> Node:
    """A vector of int32 (type 3) or int64 (9), in the field of its type."""
    return const(
        "block", {1: kind, 2: {2: [{1: len(numbers)}]}, 7 if kind == 3 else 10: packed(numbers)}
    )


CONTENT = {1: 3, 2: {2: [{1: 2}]}, 4: struct.pack("<2i", 2, 3)}
BLOCKS: dict[str, tuple[Node, str, tuple[int, int]]] = {
    "int32": (block([2, 3]), "NHWC", (2, 3)),
    "int64": (block([2, 3], 9), "NHWC", (2, 3)),
    "content": (const("block", CONTENT), "NHWC", (2, 3)),
    "channels first": (block([1, 2, 3]), "NCHW", (2, 3)),
    "rows only": (block([2]), "NHWC", (2, 1)),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_dilation_by_batches(tmp_path: Path, case: str) -> None:
    """TensorFlow writes one as SpaceToBatchND, whose blocks begin behind the batch."""
    blocks, order, expected = BLOCKS[case]
    split = node("split", "SpaceToBatchND", ["x", "block", "paddings"])
    dilated = conv(x="split")
    dilated[5].append({1: "data_format", 2: {2: order}})
    [layer] = frozen(tmp_path, [const("w", HWCM), blocks, split, dilated]).layers
    assert layer.dilation == expected and layer.padding is None
    equal(layer.weight, FILTERS)


@pytest.mark.parametrize("before", ["Relu", "SpaceToBatchND"])
def test_dilation_of_the_operator_itself(tmp_path: Path, before: str) -> None:
    """Also behind blocks that are known when the model runs only."""
    split = node("split", before, ["x", "x", "x"])
    nodes = [const("w", HWCM), split, conv(x="split", dilations=[1, 2, 4, 1])]
    [layer] = frozen(tmp_path, nodes).layers
    assert layer.dilation == (2, 4) and layer.padding == (0, 0)


def test_one_dimension_between_two(tmp_path: Path) -> None:
    """Keras puts an axis before the kernel and the image, and dilates all axes by batches."""
    row = np.ascontiguousarray(HWCM[0])  # taps, channels, filters each
    nodes = [
        const("v", row),
        node("w", "ExpandDims", ["v", "zero"]),
        node("image", "ExpandDims", ["x", "one"]),
        block([1, 3]),
        node("split", "SpaceToBatchND", ["image", "block", "paddings"]),
        conv(x="split", strides=[1, 2, 2, 1]),
    ]
    [layer] = frozen(tmp_path, nodes).layers
    assert layer.ndim == 1 and layer.stride == (1, 2) and layer.dilation == (1, 3)
    equal(layer.weight, FILTERS[:, :1])


GROUPED = np.ascontiguousarray(HWCM.transpose(0, 1, 3, 2))  # taps, one channel a group, filters
ROWS = [const("v", np.ascontiguousarray(HWIO[0])), node("wide", "ExpandDims", ["v", "zero"])]
BEFORE: dict[str, tuple[list[Node], bool]] = {
    "convolution": ([const("v", HWIO), conv("y", "v", op="Conv2D")], True),
    "convolution of one dimension": ([*ROWS, conv("y", "wide", op="Conv2D")], True),
    "depthwise": ([const("v", HWCM), conv("y", "v")], True),
    "unknown weights": ([conv("y", "x", op="Conv2D")], False),
    "reshaped": ([const("v", HWIO), conv("z", "v", op="Conv2D"), node("y", "Pack", ["z"])], False),
    "too far": (
        [
            const("v", HWIO),
            conv("r0", "v", op="Conv2D"),
            *(node(f"r{i}", "Relu", [f"r{i - 1}"]) for i in range(1, 200)),
            node("y", "Relu", ["r199"]),
        ],
        False,
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_grouped_convolutions_where_the_graph_tells_the_channels(tmp_path: Path, case: str) -> None:
    """A kernel of one channel a group is depthwise if its input has more channels."""
    before, known = BEFORE[case]
    bank = frozen(tmp_path, [*before, const("w", GROUPED), conv(x="y", op="Conv2D")])
    found = [x for x in bank.layers if x.name == "dw"]
    assert len(found) == known
    if known:
        equal(found[0].weight, FILTERS)
        assert found[0].groups == 4
    else:
        assert "one-channel" in dict(bank.skipped)["net/dw"]


# ------------------------------------------------------------------ functions

BODIES = [
    function("ConvOne", ["a", "b"], [conv("c", "b", "a")]),
    function("two", ["a", "b"], [const("own", OTHER), conv("c", "own", "a")]),
]
CALLS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "PartitionedCall": (["x", "w"], {"f": {10: {1: "ConvOne"}}}),
    "ConvOne": (["x", "w"], {}),  # called by its name
    "If": (["t", "x", "w"], {"then_branch": {10: {1: "ConvOne"}}, "else_branch": {10: {1: "two"}}}),
    "StatelessCase": (["t", "x", "w"], {"branches": {1: {9: [{1: "ConvOne"}, {1: "two"}]}}}),
    "While": (["x", "w"], {"cond": {10: {1: "two"}}, "body": {10: {1: "ConvOne"}}}),
}


@pytest.mark.parametrize("op", CALLS)
def test_functions_are_read_wherever_they_are_called(tmp_path: Path, op: str) -> None:
    inputs, attributes = CALLS[op]
    bank = frozen(tmp_path, [const("w", HWCM), node("call", op, inputs, **attributes)], BODIES)
    found = {x.name: x.weight for x in bank.layers}
    equal(found.pop("w"), FILTERS)
    if attributes and op != "PartitionedCall":
        equal(found.pop("own"), OTHERS)
    assert not found and not bank.skipped


def test_what_several_calls_use_is_read_once(tmp_path: Path) -> None:
    def call(name: str, body: str, weight: str) -> Node:
        return node(name, "PartitionedCall", ["x", weight], f={10: {1: body}})

    again = function("again", ["a", "b"], [conv("d", "b", "a"), call("5", "missing", "b")])
    calls = [call("1", "ConvOne", "w"), call("2", "ConvOne", "w"), call("3", "again", "w")]
    other = [const("o", OTHER), call("4", "ConvOne", "o")]
    bank = frozen(tmp_path, [const("w", HWCM), *calls, *other], [*BODIES, again])
    assert [x.name for x in bank.layers] == ["w", "o"] and not bank.skipped
    equal(bank.layers[1].weight, OTHERS)


def test_many_branches_cost_no_more_than_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each input is followed once, however often it is handed on."""
    followed: list[str] = []
    place = tensorflow_graphs._place
    monkeypatch.setattr(
        tensorflow_graphs, "_place", lambda *where: followed.append(where[1]) or place(*where)
    )
    branches = {1: {9: [{1: "ConvOne"}, {1: "two"}] * 50}}
    call = node("call", "Case", ["t", "x", "w"], branches=branches)
    bank = frozen(tmp_path, [const("w", HWCM), call], BODIES)
    assert [x.name for x in bank.layers] == ["w", "own"] and followed == ["x", "w"]


def test_functions_that_call_each_other_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list("abcd")
    swapped, turned = [*"ba", *names[2:]], [*names[1:], "a"]
    calls = [node(f"call{i}", "f", x) for i, x in enumerate((swapped, turned))]
    body = function("f", names, [*calls, conv("k", "a", "b")])
    nodes = [const(x, HWCM) for x in names]
    path = write(tmp_path, [*nodes, node("call", "f", names)], [body])
    assert len(kf.read(path).layers) == 4
    monkeypatch.setattr(tensorflow_graphs, "MOST_CALLS", 20)
    with pytest.raises(SourceError, match="too often"):
        kf.read(path)


THREE_AXES = [
    conv(x="y", op="Conv2D"),
    const("w", GROUPED),
    const("v", HWIO[0]),
    conv("y", "v", op="Conv2D"),
]
GIANT = const("block", {1: 3, 2: {2: [{1: 2**26}]}, 7: packed([2])})
DAMAGED: dict[str, list[Node]] = {
    "no weights": [node("dw", "DepthwiseConv2dNative", ["x"])],
    "three axes": THREE_AXES,
    "too few values": [
        const("w", {1: 1, 2: {2: [{1: x} for x in HWCM.shape]}, 4: bytes(8)}),
        conv(),
    ],
    "giant blocks": [
        *(const("w", HWCM), GIANT, node("split", "SpaceToBatchND", ["x", "block", "p"])),
        conv(x="split"),
    ],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_graphs_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(SourceError):
        kf.read(write(tmp_path, DAMAGED[case]))

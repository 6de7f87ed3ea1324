"""OpenVINO IR: what is computed from constants, older versions, bodies, and what is refused.

`tests.surgery.test_stored_weights` writes such files back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.keyset import KeySet
from keyfilters.surgery.files import replace_in_file
from tests.sources.tiny_models import FILTERS

RNG = np.random.default_rng(5)
WEIGHTS = FILTERS.reshape(4, 1, 1, 3, 3)
OTHER = RNG.normal(size=(4, 1, 1, 3, 3)).astype(np.float32)
CODES = RNG.integers(0, 256, size=(4, 1, 1, 3, 3)).astype(np.uint8)
BFLOAT = (WEIGHTS.view(np.uint32) >> 16).astype(np.uint16)
KINDS = {
    "float64": "f64", "float32": "f32", "float16": "f16", "uint16": "bf16", "uint8": "u8",
    "int8": "i8", "int64": "i64",
}  # fmt: skip
PLAIN = {"strides": "1,1", "dilations": "1,1", "pads_begin": "0,0", "pads_end": "0,0"}


class Net:
    """Layers of a network by number, the edges between them, and the constants."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.edges: list[str] = []
        self.data = b"abcd"

    def op(self, kind: str, *inputs: int, told: Any = PLAIN, dims: Any = (), more: str = "") -> int:
        """Add an operator that takes the outputs of others."""
        number = len(self.layers)
        data = " ".join(f'{key}="{value}"' for key, value in told.items())
        ports = "".join(f'<port id="{i}"/>' for i in range(len(inputs)))
        made = "".join(f"<dim>{x}</dim>" for x in dims)
        self.layers.append(
            f'<layer id="{number}" name="{kind}{number}" type="{kind}"><data {data}/>'
            f'<input>{ports}</input><output><port id="9">{made}</port></output>{more}</layer>'
        )
        self.edges += [
            f'<edge from-layer="{x}" from-port="9" to-layer="{number}" to-port="{i}"/>'
            for i, x in enumerate(inputs)
        ]
        return number

    def const(self, array: Any, **changes: Any) -> int:
        """Add a constant; uint16 is bfloat16."""
        array = np.asarray(array)
        told = {
            "element_type": KINDS[array.dtype.name], "shape": ", ".join(map(str, array.shape)),
            "offset": len(self.data), "size": array.nbytes,
        }  # fmt: skip
        self.data += array.tobytes()
        return self.op("Const", told=told | changes)

    def conv(self, weights: int, kind: str = "GroupConvolution", told: Any = PLAIN) -> int:
        return self.op(kind, self.op("Parameter"), weights, told=told)

    def old(self, array: Any, told: Any, **blob: Any) -> int:
        """Add a convolution of version 7, whose weights are a blob of its own."""
        blob = {"offset": len(self.data), "size": array.nbytes} | blob
        self.data += array.tobytes()
        held = " ".join(f'{key}="{value}"' for key, value in blob.items())
        blobs = f"<blobs><weights {held}/></blobs>"
        return self.op("Convolution", self.op("Input"), told=told, more=blobs)

    @property
    def text(self) -> str:
        return f"<layers>{''.join(self.layers)}</layers><edges>{''.join(self.edges)}</edges>"

    def write(self, folder: Path) -> Path:
        text = f'<?xml version="1.0"?><net name="n" version="11">{self.text}</net>'
        (folder / "net.xml").write_text(text)
        (folder / "net.bin").write_bytes(self.data)
        return folder / "net.xml"

    def read(self, folder: Path) -> kf.FilterBank:
        return kf.read(self.write(folder))


# ------------------------------------------------------------------ what constants become

SCALES = np.array([0.5, 2.0, 0.125, 1.0], np.float32).reshape(4, 1, 1, 1, 1)  # exact
ZEROS = np.array([128, 0, 255, 7], np.uint8).reshape(4, 1, 1, 1, 1)
Chain = Callable[[Net], int]


def scaled(net: Net) -> int:
    """Scale unsigned integers as compressed models do."""
    codes, zero = net.op("Convert", net.const(CODES)), net.op("Convert", net.const(ZEROS))
    return net.op("Multiply", net.op("Subtract", codes, zero), net.const(SCALES))


def divided(net: Net) -> int:
    shifted = net.op("Add", net.const(CODES), net.const(np.float32(3)))
    return net.op("Divide", shifted, net.const(SCALES))


def reshaped(net: Net) -> int:
    flat = net.op("Reshape", net.const(FILTERS), net.const(np.array([4, 9])), dims=(4, 9))
    square = net.op("Unsqueeze", flat, net.const(np.int64(1)), dims=(4, 1, 9, 1))
    square = net.op("Squeeze", square, net.const(np.int64(3)), dims=(4, 1, 9))
    return net.op("Reshape", square, net.const(np.array([4])), dims=(4, 1, 1, 3, 3))


def turned(net: Net) -> int:
    last = np.ascontiguousarray(np.moveaxis(WEIGHTS, (0, 1, 2), (4, 2, 3)))  # y, x, o, i, g
    return net.op("Transpose", net.const(last), net.const(np.array([4, 2, 3, 0, 1])))


RANGES: dict[str, Any] = {
    "one range": (-1.5, 1.25, -2.0, 2.0, 256),
    "a range a filter": (-SCALES, SCALES, -2 * SCALES, 3 * SCALES, 15),
    "ranges from high to low": (1.5, -1.25, 0.5, -0.75, 16),
    "nothing between": (0.25, 0.25, -1.0, 1.0, 2),
}


def quantised(way: str) -> Chain:
    def add(net: Net) -> int:
        *bounds, levels = RANGES[way]
        ends = [net.const(np.float32(x)) for x in bounds]
        return net.op("FakeQuantize", net.const(WEIGHTS), *ends, told={"levels": levels})

    return add


def on_a_grid(way: str) -> Any:
    """Quantise number by number, as the operator's specification says."""
    *bounds, levels = RANGES[way]
    ends = [np.broadcast_to(np.float32(x), WEIGHTS.shape).ravel().tolist() for x in bounds]
    made = []
    for x, low, high, first, last in zip(WEIGHTS.ravel().tolist(), *ends, strict=True):
        if x <= min(low, high):
            made.append(first)
        elif x > max(low, high):
            made.append(last)
        else:
            step = round((x - low) / (high - low) * (levels - 1))
            made.append(step / (levels - 1) * (last - first) + first)
    return np.reshape(made, WEIGHTS.shape)


MADE: dict[str, tuple[Chain, Any]] = {
    "float16, converted": (
        lambda net: net.op("Convert", net.const(WEIGHTS.astype(np.float16))),
        WEIGHTS.astype(np.float16),
    ),
    "bfloat16": (
        lambda net: net.const(BFLOAT),
        (BFLOAT.astype(np.uint32) << 16).view(np.float32),
    ),
    "float64": (lambda net: net.const(WEIGHTS.astype(np.float64)), WEIGHTS),
    "scaled": (scaled, (CODES - ZEROS.astype(float)) * SCALES),
    "divided": (divided, (CODES.astype(float) + 3) / SCALES),
    "reshaped": (reshaped, WEIGHTS),
    "transposed": (turned, WEIGHTS),
} | {f"quantised, {way}": (quantised(way), on_a_grid(way)) for way in RANGES}


@pytest.mark.parametrize("way", MADE)
def test_weights_are_followed_back_to_constants(tmp_path: Path, way: str) -> None:
    net, (chain, weights) = Net(), MADE[way]
    net.conv(chain(net))
    [layer] = net.read(tmp_path).layers
    np.testing.assert_array_equal(layer.weight, weights[:, 0, 0].astype(np.float32))
    assert ("float64" in layer.note) == (way == "float64")


def test_weights_stored_once_are_counted_once_unless_scaled_in_two_ways(tmp_path: Path) -> None:
    net = Net()
    plain, codes = net.const(WEIGHTS), net.const(CODES)
    one = net.op("Multiply", codes, net.const(SCALES))
    two = net.op("Multiply", codes, net.const(2 * SCALES))
    for weights in (plain, one, plain, two, one):
        net.conv(weights)
    bank = net.read(tmp_path)
    expected = [WEIGHTS, CODES * SCALES, CODES * SCALES * 2]
    for layer, filters in zip(bank.layers, expected, strict=True):
        np.testing.assert_array_equal(layer.weight, filters[:, 0, 0])
    assert ["shares" in why for _, why in bank.skipped] == [True, True]


def deep(net: Net) -> int:
    made = net.const(WEIGHTS)
    for _ in range(30):
        made = net.op("Convert", made)
    return made


def wide(net: Net) -> int:
    return net.op("Multiply", net.const(SCALES), net.const(WEIGHTS[:1]))


SKIPPED: dict[str, tuple[Chain, str]] = {
    "an input": (lambda net: net.op("Parameter"), "made by Parameter"),
    "computed": (lambda net: net.op("MatMul", net.const(WEIGHTS)), "made by MatMul"),
    "nothing": (lambda net: 99, "no constant"),
    "without a second operand": (lambda net: net.op("Add", net.const(WEIGHTS)), "no constant"),
    "behind thirty operators": (deep, "no constant"),
    "four bits": (lambda net: net.const(CODES, element_type="u4"), "type u4"),
    "integers": (lambda net: net.op("Convert", net.const(CODES)), "integers"),
    "operands of two shapes": (wide, "two shapes"),
    "reshaped to an unknown size": (
        lambda net: net.op("Reshape", net.const(WEIGHTS), dims=(4, 1, 1, 3, -1)),
        "made by Reshape",
    ),
}


@pytest.mark.parametrize("way", SKIPPED)
def test_weights_that_are_not_evaluated_are_named(tmp_path: Path, way: str) -> None:
    net, (chain, words) = Net(), SKIPPED[way]
    net.conv(chain(net))
    net.conv(net.const(OTHER))
    bank = net.read(tmp_path)
    assert len(bank.layers) == 1
    [(_, reason)] = bank.skipped
    assert words in reason


# ------------------------------------------------------------------ convolutions


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("Convolution", (4, 3, 3, 3), "dense 3×3 convolution of 3 channels"),
        ("GroupConvolution", (2, 4, 3, 3, 3), "grouped 3×3 convolution (2 groups of 3)"),
        ("GroupConvolution", (4, 1, 1, 2, 3, 3), "3-D depthwise convolution"),
        ("ConvolutionBackpropData", (3, 4, 3, 3), "dense 3×3 transposed convolution of 3"),
        ("GroupConvolutionBackpropData", (4, 1, 2, 3, 3), "transposed depthwise convolution"),
        ("GroupConvolutionBackpropData", (2, 3, 4, 3, 3), "grouped 3×3 transposed convolution"),
        ("DeformableConvolution", (4, 3, 3, 3), "operator DeformableConvolution"),
        ("Deconvolution", (4, 3, 3, 3), "operator Deconvolution"),
    ],
)
def test_other_convolutions_are_named(
    tmp_path: Path, kind: str, shape: tuple[int, ...], reason: str
) -> None:
    net = Net()
    net.conv(net.const(np.ones(shape, np.float32)), kind)
    net.conv(net.const(OTHER))
    bank = net.read(tmp_path)
    assert len(bank.layers) == 1
    assert [why[: len(reason)] for _, why in bank.skipped] == [reason]


def test_one_dimension_is_read_as_a_row(tmp_path: Path) -> None:
    net, row = Net(), RNG.normal(size=(4, 2, 1, 5)).astype(np.float32)
    told = {"strides": "2", "dilations": "1", "pads_begin": "1", "pads_end": "2"}
    net.conv(net.const(row), told=told)
    [layer] = net.read(tmp_path).layers
    np.testing.assert_array_equal(layer.weight, row.reshape(8, 1, 5))
    assert (layer.ndim, layer.multiplier, layer.stride) == (1, 2, (1, 2))
    assert layer.padding == (0, 1, 0, 2)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("changes", "padding"),
    [
        ({}, (1, 1)),
        ({"pads_end": "2,1"}, (1, 1, 2, 1)),
        ({"auto_pad": "explicit"}, (1, 1)),
        ({"auto_pad": "same_upper"}, "same"),
        ({"auto_pad": "same_lower"}, "same"),
        ({"auto_pad": "valid"}, (0, 0)),
    ],
)
def test_geometry(tmp_path: Path, old: bool, changes: dict[str, str], padding: Any) -> None:
    told = {"strides": "2,1", "dilations": "1,3", "pads_begin": "1,1", "pads_end": "1,1"} | changes
    net = Net()
    if old:
        net.old(WEIGHTS, told | {"kernel": "3,3", "output": 4, "group": 4})
    else:
        net.conv(net.const(WEIGHTS), told=told)
    [layer] = net.read(tmp_path).layers
    assert (layer.stride, layer.dilation, layer.padding) == ((2, 1), (1, 3), padding)


BODY, ELSE = Net(), Net()
BODY.conv(BODY.const(WEIGHTS))
ELSE.data = BODY.data
ELSE.conv(ELSE.const(OTHER))


@pytest.mark.parametrize(
    "bodies",
    [
        {"TensorIterator": f"<body>{BODY.text}</body>", "Loop": f"<body>{ELSE.text}</body>"},
        {"If": f"<then_body>{BODY.text}</then_body><else_body>{ELSE.text}</else_body>"},
    ],
)
def test_bodies_are_read(tmp_path: Path, bodies: dict[str, str]) -> None:
    net = Net()
    net.data = ELSE.data
    for kind, body in bodies.items():
        net.op(kind, more=body)
    for layer, filters in zip(net.read(tmp_path).layers, (WEIGHTS, OTHER), strict=True):
        np.testing.assert_array_equal(layer.weight, filters[:, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_filters_far_behind_the_input_are_replaced(tmp_path: Path, dtype: Any) -> None:
    net = Net()
    image, weights = net.op("Parameter"), net.const(WEIGHTS.astype(dtype))
    for _ in range(40):
        image = net.op("ReLU", image)
    net.op("GroupConvolution", image, weights)
    keys = KeySet.random(8, size=3, seed=0)
    report = replace_in_file(net.write(tmp_path), tmp_path / "new.xml", [keys])
    assert not report["left"].any()
    assert not np.array_equal(kf.read(tmp_path / "new.xml").layers[0].weight, FILTERS)


# ------------------------------------------------------------------ version 7 and before

OLD = {"kernel": "3,3", "output": 4, "group": 4}


@pytest.mark.parametrize(
    ("array", "told", "blob", "expected"),
    [
        (WEIGHTS, OLD, {}, WEIGHTS),
        (WEIGHTS.astype(np.float16), OLD, {"precision": "FP16"}, WEIGHTS.astype(np.float16)),
        (np.ones((4, 3, 3, 3), np.float32), OLD | {"group": 1}, {}, "dense 3×3"),
        (CODES, OLD, {"precision": "U8"}, "integers"),
        (CODES, OLD, {"precision": "BIN"}, "type BIN"),
        (WEIGHTS, {"kernel-x": 3, "kernel-y": 3, "output": 4, "group": 4}, {}, "kernel"),
    ],
)
def test_blobs_of_older_versions(
    tmp_path: Path, array: Any, told: Any, blob: Any, expected: Any
) -> None:
    net = Net()
    net.old(array, told, **blob)
    net.old(OTHER, OLD)
    bank = net.read(tmp_path)
    if isinstance(expected, str):
        assert [expected in why for _, why in bank.skipped] == [True]
        return
    layer, _ = bank.layers
    np.testing.assert_array_equal(layer.weight, expected[:, 0, 0].astype(np.float32))
    assert (layer.stride, layer.dilation, layer.padding) == ((1, 1), (1, 1), (0, 0))


# ------------------------------------------------------------------ damage


def twisted(net: Net) -> int:
    return net.conv(net.op("Transpose", net.const(WEIGHTS), net.const(np.array([0, 1, 2, 3, 3]))))


DAMAGED: dict[str, Chain] = {
    "behind the end": lambda net: net.conv(net.const(WEIGHTS, offset=8)),
    "before the start": lambda net: net.conv(net.const(WEIGHTS, offset=-4)),
    "too few numbers": lambda net: net.conv(net.const(WEIGHTS, size=140)),
    "weights of two axes": lambda net: net.conv(net.const(FILTERS)),
    "an order of no axes": twisted,
    "a constant without a place": lambda net: net.conv(net.const(WEIGHTS, size="")),
    "an old blob behind the end": lambda net: net.old(WEIGHTS, OLD, offset=8),
    "an old kernel of no filters": lambda net: net.old(WEIGHTS, OLD | {"output": 0}),
}


@pytest.mark.parametrize("way", DAMAGED)
def test_damaged_networks_are_refused(tmp_path: Path, way: str) -> None:
    net = Net()
    DAMAGED[way](net)
    with pytest.raises(SourceError, match="OpenVINO"):
        net.read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<net ", "<!DOCTYPE net><net ", "type of document"),
        ("<net ", f"<!-- <net {' ' * 5000} --><!DOCTYPE net><net ", "type of document"),
        ("</net>", "", "XML"),
        ("net", "wet", "no network"),
        ("<data element_type", "<told element_type", "constant"),
    ],
)
def test_files_that_are_no_network_are_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    net = Net()
    net.conv(net.const(WEIGHTS))
    path = net.write(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SourceError, match=words):
        kf.read(path)

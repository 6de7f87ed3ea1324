"""PaddlePaddle: where a program's weights are, what makes them, and what the operators tell."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import NoFiltersError, SourceError
from tests.sources.encoders import message

RNG = np.random.default_rng(10)
FILTERS = RNG.normal(size=(4, 3, 3)).astype(np.float32)
OIHW = FILTERS[:, None]
# Numbers of `VarType.Type` in Paddle's framework.proto.
BOOL, INT64, HALF, SINGLE, DOUBLE, BYTE, BRAIN = 0, 3, 4, 5, 6, 21, 22
TENSOR, FEED, RAW = 7, 9, 17
Tensors = dict[str, bytes]


def tensor(kind: int, shape: tuple[int, ...], values: bytes, levels: bytes = b"") -> bytes:
    """Encode a tensor as ``SerializeToStream`` does, with the offsets of one level of detail."""
    details = struct.pack("<QQ", 1, len(levels)) + levels if levels else bytes(8)
    described = message({1: kind, 2: list(shape)})
    head = bytes(4) + details + bytes(4) + struct.pack("<i", len(described))
    return head + described + values


def single(values: np.ndarray) -> bytes:
    return tensor(SINGLE, values.shape, values.astype("<f4").tobytes())


def operator(
    kind: str = "depthwise_conv2d", weight: str = "dw.w_0", **attributes: Any
) -> dict[int, Any]:
    """Encode a convolution; attributes are lists of integers, integers or texts."""
    numbers = {list: 6, int: 3, str: 5}
    told = {"groups": 4} | attributes
    return {
        1: [{1: "Input", 2: "x"}, {1: "Filter", 2: weight}],
        2: [{1: "Output", 2: "y"}],
        3: kind,
        4: [{1: key, numbers[type(value)]: value} for key, value in told.items()],
    }


def copy(kind: str, source: str, target: str) -> dict[int, Any]:
    return {1: [{1: "X", 2: source}], 2: [{1: "Out", 2: target}], 3: kind}


def read(
    folder: Path, operators: list[Any], tensors: Tensors, together: str = "net.pdiparams"
) -> kf.FilterBank:
    held = [{1: name, 2: {1: TENSOR}, 3: 1} for name in reversed(tensors)]
    others = [{1: "feed", 2: {1: FEED}, 3: 1}, {1: "r", 2: {1: RAW}, 3: 1}, {1: "x", 2: {1: 7}}]
    block = {1: 0, 2: 0, 3: held + others, 4: operators}
    (folder / "net.pdmodel").write_bytes(message({1: block, 4: {1: 0}}))
    parts = {together: b"".join(tensors[x] for x in sorted(tensors))} if together else tensors
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return kf.read(folder / "net.pdmodel")


@pytest.mark.parametrize("together", ["net.pdiparams", "__params__", "params", ""])
def test_weights_lie_in_one_file_or_in_a_file_each(tmp_path: Path, together: str) -> None:
    held = {"dw.w_0": single(OIHW), "a.b_0": single(FILTERS[0, 0]), "z": single(FILTERS[1])}
    bank = read(tmp_path, [operator()], held, together)
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert layer.name == "dw" and not bank.skipped


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (tensor(SINGLE, OIHW.shape, OIHW.tobytes(), bytes(16)), FILTERS),
        (tensor(HALF, OIHW.shape, OIHW.astype("<f2").tobytes()), FILTERS.astype(np.float16)),
        (tensor(DOUBLE, OIHW.shape, OIHW.astype("<f8").tobytes()), FILTERS),
        (
            tensor(BRAIN, OIHW.shape, (OIHW.view(np.uint32) >> 16).astype("<u2").tobytes()),
            (FILTERS.view(np.uint32) >> 16 << 16).view(np.float32),
        ),
    ],
    ids=["levels", "half", "double", "bfloat16"],
)
def test_types_of_tensors(tmp_path: Path, stored: bytes, expected: np.ndarray) -> None:
    held = {"dw.w_0": stored, "z": tensor(INT64, (2,), bytes(16))}
    [layer] = read(tmp_path, [operator()], held).layers
    np.testing.assert_array_equal(layer.weight, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, {"padding": (0, 0), "stride": (1, 1), "dilation": (1, 1)}),
        ({"strides": [2, 3], "dilations": [4, 5]}, {"stride": (2, 3), "dilation": (4, 5)}),
        ({"paddings": [1, 2]}, {"padding": (1, 2)}),
        ({"paddings": [1, 1, 2, 2]}, {"padding": (1, 2)}),
        ({"paddings": [0, 1, 2, 3]}, {"padding": (0, 2, 1, 3)}),
        ({"paddings": [1, 1], "padding_algorithm": "VALID"}, {"padding": (0, 0)}),
        ({"paddings": [1, 1], "padding_algorithm": "SAME"}, {"padding": "same"}),
    ],
)
def test_geometry(tmp_path: Path, attributes: dict[str, Any], expected: dict[str, object]) -> None:
    [layer] = read(tmp_path, [operator(**attributes)], {"dw.w_0": single(OIHW)}).layers
    assert {key: getattr(layer, key) for key in expected} == expected


def chain(length: int) -> list[dict[int, Any]]:
    names = ["dw.w_0", *(f"c{i}" for i in range(length))]
    return [copy("assign", x, y) for x, y in pairwise(names)]


@pytest.mark.parametrize("kind", ["cast", "assign", "share_data"])
def test_copies_of_weights_are_followed_and_counted_once(tmp_path: Path, kind: str) -> None:
    copies = [copy(kind, "dw.w_0", "c"), *chain(3)]
    operators = [*copies, operator(), operator(weight="c"), operator(weight="c2")]
    bank = read(tmp_path, operators, {"dw.w_0": single(OIHW)})
    np.testing.assert_array_equal(bank.layers[0].weight, FILTERS)
    assert [len(bank.layers), len(bank.skipped)] == [1, 2]
    assert all("counted once" in why for _, why in bank.skipped)


@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        ([operator("conv2d", "dense", groups=1)], "dense"),
        ([operator("conv3d", "volume")], "3-D"),
        ([operator("depthwise_conv2d_transpose")], "transposed"),
        ([operator("deformable_conv")], "deformable_conv"),
        ([operator(weight="bytes")], "integers"),
        ([operator(weight="w")], "nothing"),
        ([copy("relu", "dw.w_0", "w"), operator(weight="w")], "relu"),
        ([copy("assign", "w", "w"), operator(weight="w")], "assign"),
        ([*chain(40), operator(weight="c39")], "assign"),
        ([{2: [{1: "Out", 2: "w"}], 3: "assign"}, operator(weight="w")], "nothing"),
        ([{3: "conv2d"}], "nothing"),
    ],
)
def test_other_convolutions_are_named(tmp_path: Path, operators: list[Any], reason: str) -> None:
    held = {
        "bytes": tensor(BYTE, OIHW.shape, bytes(36)),
        "dense": single(np.ones((4, 4, 3, 3))),
        "volume": single(np.ones((4, 1, 3, 3, 3))),
        "own.w_0": single(OIHW),
        "dw.w_0": single(OIHW),
    }
    gradient = copy("depthwise_conv2d_grad", "own.w_0", "g")
    bank = read(tmp_path, [operator(weight="own.w_0"), gradient, *operators], held)
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    [(_, why)] = bank.skipped
    assert layer.name == "own" and reason in why


def test_a_program_without_weights(tmp_path: Path) -> None:
    with pytest.raises(NoFiltersError, match="nothing"):
        read(tmp_path, [operator()], {}, "")


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        (single(OIHW)[:-1], "cut short"),
        (single(OIHW) + b"\0", "bytes"),
        (tensor(23, OIHW.shape, OIHW.tobytes()), "type"),  # complex numbers
        (tensor(SINGLE, (4, -1, 3, 3), OIHW.tobytes()), "shape"),
        (bytes(4) + struct.pack("<Q", 2**60), "cut short"),
        (single(np.ones((4, 9, 1))), "laid out"),
    ],
    ids=["short", "long", "complex", "negative", "levels", "axes"],
)
def test_damaged_weights(tmp_path: Path, stored: bytes, word: str) -> None:
    with pytest.raises(SourceError, match=word):
        read(tmp_path, [operator()], {"dw.w_0": stored})


def test_missing_weights_are_named(tmp_path: Path) -> None:
    read(tmp_path, [operator()], {"dw.w_0": single(OIHW)})
    (tmp_path / "net.pdiparams").unlink()
    with pytest.raises(SourceError, match=r"net\.pdiparams"):
        kf.read(tmp_path / "net.pdmodel")

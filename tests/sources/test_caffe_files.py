"""Caffe: layers of before and after 2014, and how they tell shapes, groups and geometry."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from tests.sources.encoders import message, packed

RNG = np.random.default_rng(9)
FILTERS = RNG.normal(size=(4, 3, 3)).astype(np.float32)
DATA = {5: FILTERS.tobytes()}
SHAPE = {7: {1: packed((4, 1, 3, 3))}}
OLD_SHAPE = {1: 4, 2: 1, 3: 3, 4: 3}


def new(blobs: list[Any], params: dict[int, Any], kind: str = "Convolution") -> dict[int, Any]:
    return {100: [{1: "dw", 2: kind, 7: blobs, 106: params}]}


def old(blobs: list[Any], params: dict[int, Any], kind: int = 4) -> dict[int, Any]:
    return {2: [{2: "x", 3: "y", 4: "dw", 5: kind, 6: blobs, 10: params}]}


def read(folder: Path, layers: dict[int, Any]) -> kf.FilterBank:
    (folder / "net.caffemodel").write_bytes(message({1: "net", **layers}))
    return kf.read(folder / "net.caffemodel")


@pytest.mark.parametrize(
    "layers",
    [
        new([DATA | SHAPE], {1: 4, 5: 4}),
        new([DATA | OLD_SHAPE], {1: 4, 5: 4}),
        new([DATA | OLD_SHAPE | {2: 4, 1: 1}], {1: 4, 5: 4}),
        new([{8: FILTERS.astype("<f8").tobytes()} | SHAPE], {1: 4, 5: 4}),
        new([DATA | SHAPE, {5: bytes(16), 7: {1: packed((4,))}}], {1: 4, 5: 4}),
        new([DATA | SHAPE], {1: 4}, "ConvolutionDepthwise"),
        new([DATA | OLD_SHAPE | {2: 4, 1: 1}], {1: 4}, "DepthwiseConvolution"),
        new([{5: [float(x) for x in FILTERS.ravel()]} | SHAPE], {1: 4, 5: 4}),
        old([DATA | OLD_SHAPE], {1: 4, 5: 4}),
        old([DATA | SHAPE], {1: 4, 5: 4}),
    ],
    ids=[
        *("new", "four numbers", "channels second", "doubles", "bias", "own layer"),
        *("own layer, channels second", "not packed", "old", "old with a shape"),
    ],
)
def test_layers_old_and_new(tmp_path: Path, layers: dict[int, Any]) -> None:
    other = {1: "fc", 2: "InnerProduct", 7: [DATA | SHAPE]}
    bank = read(tmp_path, layers | {100: [other, *layers.get(100, [])]})
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert layer.name == "dw" and layer.groups == 4 and not bank.skipped


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0)}),
        (
            {6: 2, 18: 3, 3: 1},
            {"stride": (2, 2), "dilation": (3, 3), "padding": (1, 1)},
        ),
        (
            {6: [2, 1], 18: packed((1, 3)), 3: packed((0, 2))},
            {"stride": (2, 1), "dilation": (1, 3), "padding": (0, 2)},
        ),
        ({13: 2, 14: 3, 9: 4, 10: 5}, {"stride": (2, 3), "padding": (4, 5)}),
        ({13: 2, 10: 5}, {"stride": (2, 1), "padding": (0, 5)}),
        ({6: packed((1, 2, 3))}, {"stride": None}),
    ],
)
def test_geometry(
    tmp_path: Path, params: dict[int, Any], expected: dict[str, tuple[int, int] | None]
) -> None:
    [layer] = read(tmp_path, new([DATA | SHAPE], {1: 4, 5: 4} | params)).layers
    assert {key: getattr(layer, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (new([], {1: 4, 5: 4}), "not in the file"),
        (new([DATA | SHAPE], {1: 4, 5: 4}, "Deconvolution"), "transposed"),
        (old([DATA | SHAPE], {1: 4, 5: 4}, 39), "transposed"),
        (new([DATA | SHAPE], {1: 4}), "one-channel"),
        (new([{5: bytes(144), 7: {1: packed((4, 9, 1, 1))}}], {1: 4}), "pointwise"),
        (new([{5: bytes(144), 7: {1: packed((4, 1, 1, 3, 3))}}], {1: 4, 5: 4}), "3-D"),
    ],
)
def test_other_convolutions_are_named(tmp_path: Path, layers: dict[int, Any], reason: str) -> None:
    known = new([DATA | SHAPE], {1: 4, 5: 4})[100]
    bank = read(tmp_path, layers | {100: [*layers.get(100, []), *known]})
    np.testing.assert_array_equal(bank.layers[0].weight, FILTERS)
    [(_, why)] = bank.skipped
    assert reason in why


@pytest.mark.parametrize(
    "layers",
    [
        new([{5: FILTERS.tobytes()[:-4]} | SHAPE], {1: 4, 5: 4}),
        new([DATA | SHAPE], {1: 4, 5: 3}),
        new([DATA | {7: {1: packed((4, 1, 1, 1, 3, 3))}}], {1: 4, 5: 4}),
        new([struct.pack("<B", 0x3A) + b"\xff"], {1: 4, 5: 4}),
    ],
    ids=["short", "groups", "shape", "no message"],
)
def test_damaged_layers(tmp_path: Path, layers: dict[int, Any]) -> None:
    with pytest.raises(SourceError):
        read(tmp_path, layers)

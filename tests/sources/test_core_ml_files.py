"""Core ML networks: where their layers lie, how weights are stored, and what is refused.

Field numbers are those of ``Model.proto`` and ``NeuralNetwork.proto`` of coremltools.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from tests.sources.encoders import message, packed
from tests.sources.tiny_models import FILTERS, core_ml_package

RNG = np.random.default_rng(3)
SECOND = RNG.normal(size=(4, 3, 3)).astype(np.float32)
HALF = FILTERS.astype(np.float16)
Fields = dict[int, Any]


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def conv(name: str, weights: Any, **changes: Any) -> Fields:
    """Return a layer of four filters of 3×3; changes are fields by ``f`` and their number."""
    weights = {1: weights.tobytes()} if isinstance(weights, np.ndarray) else weights
    held = {1: 4, 2: 1, 10: 4, 20: packed([3, 3]), 90: weights}
    held |= {int(key[1:]): value for key, value in changes.items()}
    return {1: name, 2: ["x"], 3: ["y"], 100: {k: v for k, v in held.items() if v is not None}}


def network(*layers: Fields) -> Fields:
    return {1: list(layers)}


def model(kind: int, content: Fields) -> Fields:
    return {1: 4, 2: {1: {1: "x"}}, kind: content}


def read(folder: Path, content: Fields) -> kf.FilterBank:
    (folder / "net.mlmodel").write_bytes(message(content))
    return kf.read(folder / "net.mlmodel")


def read_layer(folder: Path, layer: Fields) -> kf.FilterBank:
    return read(folder, model(500, network(layer)))


# ------------------------------------------------------------------ where layers lie

ONE, TWO = conv("one", FILTERS), conv("two", SECOND)
PIPELINE = {1: [model(500, network(ONE)), model(403, network(TWO))]}
CONDITION = {1: [{1: "smaller", 2: ["i", "n"]}]}
PLACES = {
    "network": model(500, network(ONE, TWO)),
    "classifier": model(403, network(ONE, TWO)),
    "regressor": model(303, network(ONE, TWO)),
    "pipeline": model(202, PIPELINE),
    "pipeline of a classifier": model(200, {1: PIPELINE}),
    "pipeline of a regressor": model(201, {1: PIPELINE}),
    "branch": model(500, network({1: "if", 605: {1: network(ONE), 2: network(TWO)}})),
    "branch without else": model(500, network({1: "if", 605: {1: network(ONE)}}, TWO)),
    "loop": model(
        500, network({1: "while", 615: {1: 5, 2: "go", 3: CONDITION, 4: network(ONE)}}, TWO)
    ),
    "condition of a loop": model(
        500, network({1: "while", 615: {2: "go", 3: network(ONE), 4: network(TWO)}})
    ),
    "branch in a loop": model(
        500, network({1: "for", 615: {1: 5, 4: network({1: "if", 605: {2: network(ONE)}}, TWO)}})
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_layers_are_read_in_order_wherever_they_lie(tmp_path: Path, place: str) -> None:
    bank = read(tmp_path, PLACES[place])
    assert [x.name for x in bank.layers] == ["one", "two"]
    for layer, filters in zip(bank.layers, (FILTERS, SECOND), strict=True):
        np.testing.assert_array_equal(layer.weight, filters)
    assert not bank.skipped


# ------------------------------------------------------------------ how weights are stored


def in_bits(values: Any, bits: int) -> bytes:
    """Pack numbers into bits, the highest bit of each first, as coremltools does."""
    text = "".join(f"{x:0{bits}b}" for x in values.ravel())
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def raw(bits: int) -> Any:
    return RNG.integers(0, 2**bits, size=(4, 3, 3))


def linear(codes: Any, bits: int, scale: list[float], bias: list[float]) -> Fields:
    held = {1: bits, 101: {1: floats(*scale), 2: floats(*bias)}}
    return {30: in_bits(codes, bits), 40: held}


CODES = {bits: raw(bits) for bits in range(1, 9)}
SIGNED = RNG.integers(-128, 128, size=(4, 3, 3)).astype(np.int8)
SCALES, BIASES = [0.5, 0.25, 2.0, 1.0], [-8.0, 0.5, 3.0, 0.0]  # exact in every sum and product
WIDE, SHIFT = (np.reshape(x, (4, 1, 1)) for x in (SCALES, BIASES))
TABLE = RNG.normal(size=16).astype(np.float32)
STORED: dict[str, tuple[Fields, Any]] = {
    "float32, not packed": ({1: [float(x) for x in FILTERS.ravel()]}, FILTERS),
    "float16": ({2: HALF.tobytes()}, HALF),
    "int8": ({31: SIGNED.tobytes(), 40: {1: 8, 101: {1: floats(0.25)}}}, SIGNED * 0.25),
    "table": (
        {30: in_bits(CODES[4], 4), 40: {1: 4, 102: {1: TABLE.tobytes()}}},
        TABLE[CODES[4]],
    ),
    "one scale, no bias": (linear(CODES[6], 6, [0.5], []), CODES[6] * 0.5),
    "one scale, one bias": (linear(CODES[6], 6, [0.5], [-4.0]), CODES[6] * 0.5 - 4),
    **{
        f"{bits} bits": (linear(codes, bits, SCALES, BIASES), codes * WIDE + SHIFT)
        for bits, codes in CODES.items()
    },
}


@pytest.mark.parametrize("way", STORED)
def test_weights_are_read_however_they_are_stored(tmp_path: Path, way: str) -> None:
    weights, filters = STORED[way]
    [layer] = read_layer(tmp_path, conv("dw", weights)).layers
    np.testing.assert_array_equal(layer.weight, filters.astype(np.float32))


SKIPPED = {
    "no bits": (conv("dw", {30: bytes(36)}), "stored in a way"),
    "nine bits": (conv("dw", linear(CODES[8], 8, [1.0], []) | {40: {1: 9}}), "stored in a way"),
    "too short": (conv("dw", linear(CODES[4][1:], 4, [1.0], [])), "stored in a way"),
    "three scales": (conv("dw", linear(CODES[4], 4, SCALES[1:], [])), "3 scales"),
    "two biases": (conv("dw", linear(CODES[4], 4, [1.0], BIASES[:2])), "scales"),
    "no weights": (conv("dw", None), "no constant"),
    "weights as an input": (conv("dw", FILTERS) | {2: ["x", "w"]}, "no constant"),
    "three dimensions": ({1: "dw", 2: "x", 1471: {1: 4, 2: 4, 10: 4}}, "3-D"),
    "transposed": (conv("dw", FILTERS, f60=1, f2=4), "transposed depthwise"),
    "transposed with more filters": (
        conv("dw", np.zeros((4, 2, 3, 3), np.float32), f1=8, f2=4, f60=1),
        "transposed depthwise",
    ),
}


@pytest.mark.parametrize("way", SKIPPED)
def test_what_is_not_taken_is_named(tmp_path: Path, way: str) -> None:
    layer, words = SKIPPED[way]
    bank = read(tmp_path, model(500, network(layer, TWO)))
    assert [x.name for x in bank.layers] == ["two"]
    [(name, reason)] = bank.skipped
    assert name == "net/dw" and words in reason


BROKEN = {
    "index behind the table": {
        30: in_bits(np.full((4, 3, 3), 15), 4),
        40: {1: 4, 102: {1: TABLE[:15].tobytes()}},
    },
    "too few floats": {1: FILTERS[1:].tobytes()},
    "half of a number": {2: HALF.tobytes()[1:]},
    "too few integers": {31: SIGNED[1:].tobytes(), 40: {101: {1: floats(1.0)}}},
}


@pytest.mark.parametrize("way", BROKEN)
def test_damaged_weights_are_refused(tmp_path: Path, way: str) -> None:
    with pytest.raises(SourceError, match=r"net\.mlmodel"):
        read_layer(tmp_path, conv("dw", BROKEN[way]))


# ------------------------------------------------------------------ geometry


def edges(top: int, bottom: int, left: int, right: int) -> Fields:
    return {1: {10: [{1: top, 2: bottom}, {1: left, 2: right}]}}


@pytest.mark.parametrize(
    ("changes", "stride", "dilation", "padding"),
    [
        ({"f20": None}, (1, 1), (1, 1), (0, 0)),  # what is left out: 3×3, and steps of one
        ({"f50": b"", "f30": packed([2, 1])}, (2, 1), (1, 1), (0, 0)),
        ({"f50": edges(2, 2, 1, 1), "f40": packed([2, 3])}, (1, 1), (2, 3), (2, 1)),
        ({"f50": edges(1, 2, 3, 4)}, (1, 1), (1, 1), (1, 3, 2, 4)),
        ({"f51": {1: 1}}, (1, 1), (1, 1), "same"),
    ],
)
def test_geometry(
    tmp_path: Path, changes: dict[str, Any], stride: Any, dilation: Any, padding: Any
) -> None:
    [layer] = read_layer(tmp_path, conv("dw", FILTERS, **changes)).layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert (layer.stride, layer.dilation, layer.padding) == (stride, dilation, padding)


def test_no_groups_are_one_group(tmp_path: Path) -> None:
    layer = conv("dense", np.ones((2, 4, 1, 3), np.float32), f1=2, f2=4, f10=0, f20=packed([1, 3]))
    bank = read(tmp_path, model(500, network(layer, TWO)))
    assert bank.skipped == [("net/dense", "dense 1×3 convolution of 4 channels")]


# ------------------------------------------------------------------ packages


@pytest.mark.parametrize(
    ("root", "path", "words"),
    [
        ("a", "../../outside.mlmodel", "not inside"),
        ("a", "com.apple.CoreML/other.mlmodel", "not inside"),
        ("b", "com.apple.CoreML/model.mlmodel", "Core ML"),
    ],
)
def test_a_package_that_names_no_model_of_its_own_is_refused(
    tmp_path: Path, root: str, path: str, words: str
) -> None:
    package = core_ml_package(tmp_path)
    (tmp_path / "outside.mlmodel").write_bytes(message(PLACES["network"]))
    content = {"itemInfoEntries": {"a": {"path": path}}, "rootModelIdentifier": root}
    (package / "Manifest.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=words):
        kf.read(package)

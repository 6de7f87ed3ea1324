"""MNN: the ways in which it stores weights, as its ``schema/default/CaffeOp.fbs`` says."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from tests.sources.encoders import Table, flatbuffer

RNG = np.random.default_rng(6)
FILTERS = RNG.normal(size=(4, 3, 3)).astype(np.float32)
INTEGERS = RNG.integers(-128, 128, (4, 3, 3), dtype=np.int8)
SHORT = RNG.integers(-8, 8, (4, 3, 3), dtype=np.int8)
SCALES = np.array([0.5, 2, 0.25, 1], np.float32)
LEAST = np.array([-64, -3, 0, 5], np.float32)
PAIRS = np.stack([LEAST, SCALES], 1).ravel()
HALVES = SCALES.astype(np.float16).view(np.uint16)
DEPTHWISE, PLAIN = 13, 12
WHOLE = {9: ("i", 4), 10: ("i", 4), 11: ("i", 4), 2: ("i", 3), 3: ("i", 3)}


def real(value: float) -> tuple[str, int]:
    return "i", struct.unpack("<i", struct.pack("<f", value))[0]


def operator(main: dict[int, Any], kind: int = DEPTHWISE, **common: Any) -> Table:
    """Encode a convolution; ``f9=...`` is the field 9 of what is common to all."""
    told = WHOLE | {int(key[1:]): value for key, value in common.items()}
    return Table({1: ("b", 9), 2: Table({0: Table(told), **main}), 3: "dw", 5: ("i", kind)})


def read(folder: Path, *operators: Table, graphs: Sequence[Table] = ()) -> kf.FilterBank:
    content = Table({3: list(operators), 10: list(graphs)})
    (folder / "net.mnn").write_bytes(flatbuffer(content))
    return kf.read(folder / "net.mnn")


def integers(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(values.tobytes(), np.int8)


def packed(values: np.ndarray, levels: list[int], shape: tuple[int, ...] = (4, 9)) -> np.ndarray:
    """Encode integers as indices of a table of levels, bit by bit."""
    bits = max((len(levels) - 1).bit_length(), 1)
    digits = "".join(f"{levels.index(int(x)):0{bits}b}" for x in values.ravel())
    digits += "0" * (-len(digits) % 8)
    content = struct.pack(f"<B{len(shape)}HB", len(shape), *shape, len(levels) % 256)
    content += struct.pack(f"<{len(levels)}b", *levels)
    content += bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    return np.frombuffer(content, np.int8)


def each(values: np.ndarray, least: float | None = None, factor: float = 1) -> np.ndarray:
    scaled = values if least is None else values.astype(np.float64) - least
    offset = 0 if least is None else LEAST[:, None, None]
    return (scaled * SCALES[:, None, None] + offset).astype(np.float32) * np.float32(factor)


EIGHT, FOUR = list(range(-128, 128)), list(range(-8, 8))
FEW = RNG.choice([-3, 0, 90], (4, 3, 3))
BEHIND = np.frombuffer(struct.pack("<BHHB3b", 2, 4, 9, 3, -3, 0, 90) + b"\xff" * 9, np.int8)
ONE = real(1)  # a further factor of all scales
BITS = {2: ("i", 1), 4: ONE, 7: ("i", 4)}


@pytest.mark.parametrize(
    ("quantised", "expected"),
    [
        ({2: ("i", 3), 0: integers(FILTERS.astype("<f2"))}, FILTERS.astype(np.float16)),
        ({2: ("i", 4), 0: integers(INTEGERS), 1: SCALES, 4: ONE}, each(INTEGERS)),
        ({2: ("i", 4), 0: integers(INTEGERS), 14: HALVES, 4: ONE}, each(INTEGERS)),
        ({2: ("i", 4), 0: integers(INTEGERS), 1: PAIRS}, each(INTEGERS, -128)),
        ({2: ("i", 1), 0: packed(INTEGERS, EIGHT), 1: SCALES, 4: ONE}, each(INTEGERS)),
        ({2: ("i", 1), 0: packed(FEW, [-3, 0, 90]), 1: SCALES, 4: ONE}, each(FEW)),
        ({2: ("i", 1), 0: packed(SHORT, FOUR), 1: SCALES, 4: real(0.5)}, each(SHORT, None, 0.5)),
        (
            {2: ("i", 1), 0: packed(SHORT, FOUR), 1: SCALES, 4: real(0.5), 10: ("b", 1)},
            each(SHORT),
        ),
        (
            {2: ("i", 1), 0: packed(INTEGERS, EIGHT), 1: PAIRS, 4: ONE, 9: ("i", 4)},
            each(INTEGERS, -128),
        ),
        (
            BITS | {0: packed(SHORT, FOUR), 1: PAIRS, 8: ("i", -8), 9: ("i", 4)},
            each(SHORT, -8),
        ),
    ],
    ids=[
        *(
            "half",
            "bytes",
            "half scales",
            "bytes of the oldest",
            "packed",
            "levels",
            "factor",
            "scaled",
        ),
        *("pairs", "pairs of four bits"),
    ],
)
def test_quantised_weights(tmp_path: Path, quantised: dict[int, Any], expected: np.ndarray) -> None:
    [layer] = read(tmp_path, operator({3: Table(quantised)})).layers
    np.testing.assert_array_equal(layer.weight, expected.astype(np.float32))
    assert not layer.note


def test_scales_of_whole_layers_are_said(tmp_path: Path) -> None:
    held = Table({0: integers(INTEGERS), 2: SCALES})
    [layer] = read(tmp_path, operator({4: held}, kind=515)).layers
    np.testing.assert_array_equal(layer.weight, each(INTEGERS))
    assert "scale" in layer.note


@pytest.mark.parametrize(
    ("kind", "common", "weights", "reason"),
    [
        (DEPTHWISE, {}, {}, "another file"),
        (DEPTHWISE, {}, {4: Table({2: SCALES})}, "another file"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 1), 4: ONE})}, "another file"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 8)})}, "another file"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 2), 0: packed(FEW, [-3, 0, 90])})}, "sparse"),
        (DEPTHWISE, {}, {3: Table({1: SCALES, 13: np.arange(4, dtype=np.uint32)})}, "sparse"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 4), 0: integers(INTEGERS), 1: SCALES[:1]})}, "scales"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 1), 0: packed(FEW, [-3, 0, 90], (9,))})}, "packed"),
        (DEPTHWISE, {}, {3: Table({2: ("i", 1), 0: packed(FEW, [-3, 0, 90])[:5]})}, "packed"),
        (PLAIN, {"f9": ("i", 1)}, {1: np.ones(144, np.float32)}, "dense"),
        (PLAIN, {"f9": ("i", 1), "f11": ("i", 0)}, {1: np.ones(144, np.float32)}, "dense"),
        (PLAIN, {"f9": ("i", 1), "f11": ("i", 0)}, {3: Table({2: ("i", 1)})}, "not told"),
        (PLAIN, {"f9": ("i", 2)}, {1: np.ones(72, np.float32)}, "grouped"),
        (18, {}, {1: FILTERS.ravel()}, "transposed"),
        (55, {}, {}, "QuantizedDepthwiseConv2D"),
        (113, {}, {}, "Convolution3D"),
    ],
)
def test_other_convolutions_are_named(
    tmp_path: Path, kind: int, common: dict[str, Any], weights: dict[int, Any], reason: str
) -> None:
    known = operator({1: FILTERS.ravel()})
    bank = read(tmp_path, operator(weights, kind, **common), known)
    np.testing.assert_array_equal(bank.layers[0].weight, FILTERS)
    [(_, why)] = bank.skipped
    assert reason in why


def test_other_operators_are_no_convolutions(tmp_path: Path) -> None:
    scattered = Table({1: ("b", 1), 2: Table({0: ("i", 3)}), 3: "s", 5: ("i", 118)})  # ScatterNd
    other = Table({1: ("b", 1), 2: Table({0: ("i", 3)}), 3: "o", 5: ("i", PLAIN)})
    bank = read(tmp_path, scattered, other, operator({1: FILTERS.ravel()}))
    assert len(bank) == 4 and not bank.skipped


@pytest.mark.parametrize(
    ("common", "expected"),
    [
        ({}, (0, 0)),
        ({"f0": ("i", 2), "f1": ("i", 1)}, (1, 2)),
        ({"f8": ("b", 1), "f0": ("i", 2)}, (0, 0)),
        ({"f8": ("b", 2), "f0": ("i", 2)}, "same"),
        ({"f14": np.array([1, 2, 1, 2], np.int32)}, (1, 2)),
        ({"f14": np.array([0, 0, 1, 2], np.int32)}, (0, 0, 1, 2)),
        ({"f14": np.array([1, 2], np.int32)}, (1, 2)),
    ],
)
def test_paddings(tmp_path: Path, common: dict[str, Any], expected: object) -> None:
    [layer] = read(tmp_path, operator({1: FILTERS.ravel()}, **common)).layers
    assert layer.padding == expected


@pytest.mark.parametrize("kind", [DEPTHWISE, PLAIN])
def test_grouped_and_depthwise_convolutions_are_one(tmp_path: Path, kind: int) -> None:
    common = {"f9": ("i", 4), "f10": ("i", 8), "f2": ("i", 1), "f3": ("i", 9)}
    values = RNG.normal(size=(8, 9, 1)).astype(np.float32)
    [layer] = read(tmp_path, operator({1: values.ravel()}, kind, **common)).layers
    np.testing.assert_array_equal(layer.weight, values)
    assert (layer.groups, layer.multiplier) == (4, 2)


def test_groups_of_depthwise_convolutions_need_not_be_told(tmp_path: Path) -> None:
    [layer] = read(tmp_path, operator({1: FILTERS.ravel()}, f9=("i", 1))).layers
    assert (layer.groups, layer.multiplier) == (4, 1)


def test_graphs_inside_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Table({0: "loop", 4: [operator({1: FILTERS[::-1].ravel()})] * 2})
    outer = operator({1: FILTERS.ravel()})
    bank = read(tmp_path, outer, graphs=[inner, inner])
    expected = [FILTERS, *[FILTERS[::-1]] * 4]
    np.testing.assert_array_equal([x.weight for x in bank.layers], expected)
    monkeypatch.setattr("keyfilters.sources.mnn_files.MOST", 3)  # so as not to write as many
    with pytest.raises(SourceError, match="more than 3"):
        read(tmp_path, outer, graphs=[inner, inner])


@pytest.mark.parametrize(
    "damaged",
    [
        operator({1: FILTERS.ravel()}, f9=("i", 3)),
        operator({1: FILTERS.ravel()[:-1]}),
        operator({3: Table({2: ("i", 1), 0: packed(FEW, [-3, 0, 90])[:-1], 1: SCALES})}),
        operator({3: Table({2: ("i", 1), 0: BEHIND, 1: SCALES})}),
        Table({1: ("b", 9), 2: Table({1: FILTERS.ravel()}), 3: "dw", 5: ("i", DEPTHWISE)}),
        Table({1: ("b", 9), 3: "dw", 5: ("i", DEPTHWISE)}),
    ],
    ids=["groups", "short", "cut short", "index", "no geometry", "nothing"],
)
def test_damaged_convolutions(tmp_path: Path, damaged: Table) -> None:
    with pytest.raises(SourceError):
        read(tmp_path, damaged)

"""TensorFlow.js: types of weights in a manifest, files in parts, functions of a graph, damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.sources.tfjs_files import read_tfjs
from tests.sources.tiny_models import CONFIG, FILTERS, HWCM, HWIO

Weight = tuple[dict[str, Any], bytes]  # an entry of a manifest, and its bytes
NAME = "dw/depthwise_kernel"


def held(
    value: Any, name: str = NAME, dtype: str = "float32", quantised: dict[str, Any] | None = None
) -> Weight:
    entry = {"name": name, "shape": list(value.shape), "dtype": dtype}
    return entry | ({"quantization": quantised} if quantised else {}), value.tobytes()


def write(folder: Path, weights: list[Weight], topology: Any = None, parts: int = 1) -> Path:
    data = b"".join(content for _, content in weights)
    step = len(data) // parts + 1
    names = [f"part{i}.bin" for i in range(parts)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(data[i * step : (i + 1) * step])
    content: Any = [{"paths": names, "weights": [entry for entry, _ in weights]}]
    if topology is not None:
        content = {"modelTopology": topology, "weightsManifest": content}
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.json"


HALF = HWCM.astype(np.float16)
BYTES = np.random.default_rng(0).integers(0, 256, HWCM.shape)
TWO = BYTES * 257
SCALE = {"scale": 0.037, "min": -3.5}
STORED: dict[str, tuple[Weight, Any]] = {
    "float32": (held(HWCM), HWCM),
    "float16": (held(HALF, dtype="float16"), HALF),
    "to float16": (held(HALF, quantised={"dtype": "float16"}), HALF),
    "to uint8": (
        held(BYTES.astype(np.uint8), quantised={"dtype": "uint8", **SCALE}),
        BYTES * 0.037 - 3.5,
    ),
    "to uint16": (
        held(TWO.astype(np.uint16), quantised={"dtype": "uint16", **SCALE}),
        TWO * 0.037 - 3.5,
    ),
}
TEXTS = b"".join(struct.pack("<I", len(x)) + x for x in (b"", b"cat", "größer".encode()))
BEFORE: list[Weight] = [  # of other types, before the kernel in the same file
    ({"name": "words", "shape": [3], "dtype": "string"}, TEXTS),
    held(np.ones((2, 3), bool), "mask", "bool"),
    held(np.ones(5, np.complex64), "spectrum", "complex64"),
    held(np.ones((), np.int32), "step", "int32"),
]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", STORED)
def test_weights_of_every_type_behind_others(tmp_path: Path, kind: str, parts: int) -> None:
    weight, expected = STORED[kind]
    [layer] = kf.read(write(tmp_path, [*BEFORE, weight], parts=parts)).layers
    expected = np.moveaxis(expected[..., 0].astype(np.float32), -1, 0)
    np.testing.assert_array_equal(layer.weight.view(np.uint32), expected.view(np.uint32))


def test_integers_without_a_scale_are_not_read(tmp_path: Path) -> None:
    weights = [held(BYTES.astype(np.int32), dtype="int32"), held(HWCM, "o/depthwise_kernel")]
    bank = read_tfjs(write(tmp_path, weights), "net")
    assert [x.name for x in bank.layers] == ["o"]
    [(name, why)] = bank.skipped
    assert name == "net/dw" and "without a scale" in why


DAMAGED: dict[str, Weight] = {
    "cut": ({"name": NAME, "shape": [3, 3, 4, 2], "dtype": "float32"}, HWCM.tobytes()),
    "negative": ({"name": NAME, "shape": [3, 3, -4, -1], "dtype": "float32"}, HWCM.tobytes()),
    "type": ({"name": NAME, "shape": [3, 3, 4, 1], "dtype": "float31"}, HWCM.tobytes()),
    "texts": ({"name": "words", "shape": [2**40], "dtype": "string"}, TEXTS),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_manifests_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(SourceError):
        kf.read(write(tmp_path, [DAMAGED[case], *BEFORE[1:2]]))


def test_kernels_that_the_layers_do_not_name(tmp_path: Path) -> None:
    """Such as those inside a layer of a class of one's own; what an optimiser keeps is none."""
    weights = [
        *(held(HWIO, "pw/kernel"), held(HWCM)),
        *(held(HWCM * 2, "block/inner/depthwise_kernel"), held(HWCM, "Adam/x/depthwise_kernel")),
    ]
    bank = kf.read(write(tmp_path, weights, {"model_config": CONFIG}))
    assert [(x.name, x.stride) for x in bank.layers] == [("dw", (2, 2)), ("block/inner", None)]
    np.testing.assert_array_equal(bank.layers[1].weight, FILTERS * 2)


def conv(name: str, image: str, weight: str) -> dict[str, Any]:
    strides = {"list": {"i": ["1", "1", "1", "1"]}}
    op, inputs = "DepthwiseConv2dNative", [image, weight]
    return {"name": name, "op": op, "input": inputs, "attr": {"strides": strides}}


@pytest.mark.parametrize("op", ["StatelessIf", "Case"])
def test_functions_of_a_graph(tmp_path: Path, op: str) -> None:
    def function(name: str, weight: str) -> dict[str, Any]:
        arguments = [{"name": "a"}, {"name": "b"}]
        own = {"name": "own", "op": "Const"}
        nodes = [own, conv("c", "a", weight)]
        return {"signature": {"name": name, "inputArg": arguments}, "nodeDef": nodes}

    called = [{"name": "one"}, {"name": "two"}]
    attributes: dict[str, Any] = {
        "then_branch": {"func": called[0]},
        "else_branch": {"func": called[1]},
    }
    if op == "Case":
        attributes = {"branches": {"list": {"func": called}}}
    nodes = [
        *({"name": x, "op": "Placeholder"} for x in ("x", "t")),
        {"name": "w", "op": "Const"},
        {"name": "choice", "op": op, "input": ["t", "x", "w"], "attr": attributes},
    ]
    library = {"function": [function("one", "b"), function("two", "own")]}
    weights = [held(HWCM, "w"), held(HWCM * 2, "own")]
    bank = kf.read(write(tmp_path, weights, {"node": nodes, "library": library}))
    assert [x.name for x in bank.layers] == ["w", "own"]
    np.testing.assert_array_equal(bank.layers[0].weight, FILTERS)
    np.testing.assert_array_equal(bank.layers[1].weight, FILTERS * 2)

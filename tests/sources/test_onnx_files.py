"""Reading ONNX files, against onnxruntime, torch and the real models of two OCR packages."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.errors import MissingExtraError, SourceError
from keyfilters.sources.onnx_files import read_onnx

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
Nodes = list[Any]
Tensors = dict[str, Any]


def weights(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def tensor(name: str, value: Any) -> Any:
    return value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)


def proto(
    nodes: Nodes,
    tensors: Tensors | None = None,
    inputs: dict[str, list[int | None]] | None = None,
    output: str = "y",
    opset: int = 21,
    functions: Sequence[Any] = (),
) -> Any:
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in ({"x": [None] * 4} if inputs is None else inputs).items()
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [tensor(name, value) for name, value in (tensors or {}).items()],
    )
    domains = {"", *(function.domain for function in functions)}
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, 1 if d else opset) for d in sorted(domains)],
        functions=list(functions),
        ir_version=10,
    )


def conv(weight: str = "w", x: str = "x", y: str = "y", **attributes: Any) -> Any:
    attributes.setdefault("name", "dw")
    return helper.make_node("Conv", [x, weight], [y], **attributes)


def read(model: Any, folder: Path) -> FilterBank:
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return read_onnx(path, "net")


def refusal(model: Any, folder: Path) -> str:
    """Return the message with which a file is refused, after checking its form."""
    with pytest.raises(SourceError) as caught:
        read(model, folder)
    message = str(caught.value)
    assert str(folder / "net.onnx") in message
    assert "\n" not in message
    return message


def run(model: Any, x: Any = None) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {} if x is None else {"x": x})[0]


# ------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    ("distribution", "version", "file", "sizes"),
    [
        ("rapidocr-onnxruntime", "1.4.4", "ch_PP-OCRv4_det_infer", {(3, 3): 336, (5, 5): 2112}),
        ("rapidocr-onnxruntime", "1.4.4", "ch_PP-OCRv4_rec_infer", {(3, 3): 432, (5, 5): 2640}),
        ("rapidocr", "3.10.0", "PP-OCRv6_det_small", {(3, 3): 2160, (7, 7): 384}),
        ("rapidocr", "3.10.0", "PP-OCRv6_rec_small", {(1, 7): 120, (3, 3): 2496}),
    ],
)
def test_counts_of_real_files(
    distribution: str, version: str, file: str, sizes: dict[tuple[int, int], int]
) -> None:
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    if installed.version != version:
        pytest.skip(f"the counts are those of {distribution} {version}, not {installed.version}")
    found = [p for p in installed.files or () if p.name == f"{file}.onnx"]
    bank = read_onnx(Path(str(found[0].locate())), file)
    assert bank.sizes == sizes
    assert "non-finite" not in set(bank.unusable().flaw)
    assert all("convolution" in reason for _, reason in bank.skipped)


def test_weights_of_a_real_file_are_those_of_its_initialisers() -> None:
    try:
        files = importlib.metadata.distribution("rapidocr").files or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rapidocr is not installed")
    path = Path(str(next(p for p in files if p.name == "PP-OCRv6_det_small.onnx").locate()))
    graph = onnx.load(path).graph
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    copies = {x.output[0]: x.input[0] for x in graph.node if x.op_type == "Identity"}
    nodes = {node.name: node for node in graph.node}
    for layer in read_onnx(path, "det").layers:
        name = nodes[layer.name].input[1]
        assert np.array_equal(layer.weight[:, None], stored[copies.get(name, name)])


# ------------------------------------------------------------------ geometry


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.multiplied = nn.Conv2d(8, 16, (3, 5), stride=(2, 1), dilation=(1, 2), groups=8)
        self.row = nn.Conv2d(16, 16, (1, 7), padding=(0, 3), groups=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row(self.multiplied(self.stem(x)))


def test_weights_geometry_and_output_agree_with_torch_and_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, nodes, tensors, x = Net(), [], {}, "x"
    for name, layer in net.named_children():
        assert isinstance(layer, nn.Conv2d)
        tensors |= {f"{name}.{k}": v.numpy() for k, v in layer.state_dict().items()}
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{name}.weight", f"{name}.bias"],
                [x := "y" if name == "row" else name],
                name=name,
                group=layer.groups,
                strides=layer.stride,
                dilations=layer.dilation,
                pads=[layer.padding[0], layer.padding[1]] * 2,
            )
        )
    model, image = proto(nodes, tensors), torch.randn(1, 3, 20, 24)
    bank = read(model, tmp_path)
    assert [x.name for x in bank.layers] == ["multiplied", "row"]
    assert [x.size for x in bank.layers] == [(3, 5), (1, 7)]
    assert [x.stride for x in bank.layers] == [(2, 1), (1, 1)]
    assert [x.dilation for x in bank.layers] == [(1, 2), (1, 1)]
    assert [x.multiplier for x in bank.layers] == [2, 1]
    assert [x.depth for x in bank.layers] == [0.0, 1.0]
    assert bank.skipped == [("net/stem", "dense 3×3 convolution of 3 channels")]
    for layer in bank.layers:
        module = net.get_submodule(layer.name)
        assert np.array_equal(layer.weight, module.weight.detach()[:, 0])  # type: ignore[union-attr]
    with torch.no_grad():
        expected = net(image).numpy()
    np.testing.assert_allclose(run(model, image.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("op_type", "shape", "group", "reason"),
    [
        ("Conv", (8, 4, 3, 3), 1, "dense 3×3 convolution of 4 channels"),
        ("Conv", (8, 4, 1, 1), 1, "pointwise (1×1) convolution"),
        ("Conv", (8, 2, 3, 3), 2, "grouped 3×3 convolution (2 groups of 2)"),
        ("Conv", (8, 1, 3, 3), 1, "3×3 convolution of a one-channel input"),
        ("Conv", (8, 1, 3, 3, 3), 8, "3-D depthwise convolution"),
        ("Conv", (8, 1, 1, 1), 8, "depthwise convolution of a single tap"),
        ("ConvTranspose", (8, 1, 4, 4), 8, "transposed depthwise convolution"),
        ("ConvTranspose", (8, 5, 2, 2), 1, "dense 2×2 transposed convolution of 8 channels"),
        ("ConvTranspose", (8, 3, 2, 2), 2, "grouped 2×2 transposed convolution (2 groups of 4)"),
    ],
)
def test_other_convolutions_are_named(
    tmp_path: Path, op_type: str, shape: tuple[int, ...], group: int, reason: str
) -> None:
    node = helper.make_node(op_type, ["x", "w"], ["y"], name="other", group=group)
    bank = read(proto([node], {"w": weights(*shape)}), tmp_path)
    assert not bank.layers
    assert bank.skipped[0][0] == "net/other"
    assert bank.skipped[0][1].startswith(reason)


def test_unknown_convolutions_are_named(tmp_path: Path) -> None:
    deformed = helper.make_node("DeformConv", ["x", "w", "o"], ["t"], name="deformed")
    foreign = helper.make_node("Conv", ["t", "w"], ["y"], name="foreign", domain="elsewhere")
    bank = read(proto([deformed, foreign], {"w": weights(4, 1, 3, 3)}), tmp_path)
    assert bank.skipped == [
        ("net/deformed", "operator DeformConv, which is not read"),
        ("net/foreign", "operator elsewhere.Conv, which is not read"),
    ]


def test_a_nameless_layer_takes_the_name_of_its_weights(tmp_path: Path) -> None:
    bank = read(proto([conv(group=4, name="")], {"w": weights(4, 1, 3, 3)}), tmp_path)
    assert bank.layers[0].name == "w"


# ------------------------------------------------------------------ where weights come from


def node(op_type: str, *inputs: str, output: str = "w", **attributes: Any) -> Any:
    return helper.make_node(op_type, list(inputs), [output], **attributes)


def packed(data_type: int, values: Any) -> Any:
    return helper.make_tensor("q", data_type, values.shape, values.ravel())


INT8 = RNG.integers(-128, 128, (6, 1, 3, 3)).astype(np.int8)
INT4 = RNG.integers(-8, 8, (6, 1, 3, 3))
SCALES = RNG.uniform(0.01, 0.1, 6).astype(np.float32)
ZEROS = RNG.integers(-5, 5, 6).astype(np.int8)
REAL = weights(6, 1, 3, 3)
BFLOAT16 = (REAL.view(np.uint32) & 0xFFFF0000).view(np.float32)  # exactly representable
STORED: dict[str, tuple[Nodes, Tensors, Any]] = {
    "initialiser": ([], {"w": REAL}, REAL),
    "constant node": ([node("Constant", value=tensor("", REAL))], {}, REAL),
    "copy": ([node("Identity", "v", output="u"), node("Identity", "u")], {"v": REAL}, REAL),
    "float16": (
        [node("Cast", "v", to=TensorProto.FLOAT)],
        {"v": REAL.astype(np.float16)},
        REAL.astype(np.float16),
    ),
    "bfloat16": (
        [node("Cast", "q", to=TensorProto.FLOAT)],
        {"q": packed(TensorProto.BFLOAT16, BFLOAT16)},
        BFLOAT16,
    ),
    "int8 per tensor": (
        [node("DequantizeLinear", "v", "s", "z")],
        {"v": INT8, "s": SCALES[0], "z": ZEROS[0]},
        (INT8.astype(np.float32) - ZEROS[0]) * SCALES[0],
    ),
    "int8 per axis": (
        [node("DequantizeLinear", "v", "s", "z", axis=0)],
        {"v": INT8, "s": SCALES, "z": ZEROS},
        (INT8.astype(np.float32) - ZEROS.reshape(6, 1, 1, 1)) * SCALES.reshape(6, 1, 1, 1),
    ),
    "int8 in blocks": (
        [node("DequantizeLinear", "v", "s", axis=0, block_size=2)],
        {"v": INT8, "s": np.ones((3, 1, 3, 3), np.float32) * SCALES[:3].reshape(3, 1, 1, 1)},
        INT8 * np.repeat(SCALES[:3], 2).reshape(6, 1, 1, 1),
    ),
    "int4": (
        [node("DequantizeLinear", "q", "s")],
        {"q": packed(TensorProto.INT4, INT4), "s": SCALES[0]},
        INT4.astype(np.float32) * SCALES[0],
    ),
    "transposed": (
        [node("Transpose", "v", perm=[3, 2, 0, 1])],
        {"v": np.ascontiguousarray(REAL.transpose(2, 3, 1, 0))},
        REAL,
    ),
    "reshaped": (
        [node("Reshape", "v", "shape")],
        {"v": REAL.ravel(), "shape": np.array([6, 1, 3, -1])},
        REAL,
    ),
    "multiplied": ([node("Mul", "v", "s")], {"v": REAL, "s": SCALES[0]}, REAL * SCALES[0]),
    "tiled": (
        [node("Tile", "v", "n")],
        {"v": REAL[:1], "n": np.array([6, 1, 1, 1])},
        np.repeat(REAL[:1], 6, axis=0),
    ),
    "split": (
        [helper.make_node("Split", ["v"], ["other", "w"], num_outputs=2)],
        {"v": np.concatenate([REAL + 1, REAL])},
        REAL,
    ),
}


@pytest.mark.parametrize("way", STORED)
def test_every_way_to_store_a_weight(tmp_path: Path, way: str) -> None:
    nodes, tensors, expected = STORED[way]
    bank = read(proto([*nodes, conv(group=6)], tensors), tmp_path)
    assert np.array_equal(bank.layers[0].weight, expected[:, 0].astype(np.float32))
    # The same constants, computed by another runtime.
    computed = run(proto([*nodes, node("Identity", "w", output="y")], tensors, inputs={}))
    assert np.array_equal(bank.layers[0].weight, computed[:, 0])


@pytest.mark.parametrize(("opset", "domain"), [(10, ""), (13, ""), (17, "com.microsoft")])
def test_older_and_foreign_dequantisation(tmp_path: Path, opset: int, domain: str) -> None:
    per_tensor = opset == 10
    dequantise = node("DequantizeLinear", "v", "s", "z", domain=domain)
    if not per_tensor:
        dequantise.attribute.append(helper.make_attribute("axis", 0))
    tensors = {"v": INT8, "s": SCALES, "z": ZEROS}
    if per_tensor:
        tensors |= {"s": SCALES[0], "z": ZEROS[0]}
    bank = read(proto([dequantise, conv(group=6)], tensors, opset=opset), tmp_path)
    computed = [dequantise, node("Mul", "w", "one", output="y")]
    model = proto(computed, tensors | {"one": np.float32(1)}, inputs={}, opset=opset)
    model.opset_import.extend([helper.make_opsetid(domain, 1)] if domain else [])
    assert np.array_equal(bank.layers[0].weight, run(model)[:, 0])


def test_float64_is_rounded_and_said(tmp_path: Path) -> None:
    real = RNG.normal(size=(4, 1, 3, 3))
    (layer,) = read(proto([conv(group=4)], {"w": real}), tmp_path).layers
    assert np.array_equal(layer.weight, real[:, 0].astype(np.float32))
    assert "float64" in layer.note


def test_bfloat16_weights_without_a_cast_are_exact(tmp_path: Path) -> None:
    model = proto([conv("q", group=6)], {"q": packed(TensorProto.BFLOAT16, BFLOAT16)})
    assert np.array_equal(read(model, tmp_path).layers[0].weight, BFLOAT16[:, 0])


@pytest.mark.parametrize("shape", [(), (1,), (6,)])
def test_qlinearconv(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scale, zero = (np.resize(x, shape).astype(x.dtype) for x in (SCALES, ZEROS))
    tensors = {"xs": SCALES[0], "xz": ZEROS[0], "w": INT8, "s": scale, "z": zero}
    inputs = ["x", "xs", "xz", "w", "s", "z", "xs", "xz"]
    quantised = helper.make_node("QLinearConv", inputs, ["y"], name="dw", group=6, strides=[2, 1])
    (layer,) = read(proto([quantised], tensors), tmp_path).layers
    per_filter = [np.broadcast_to(x.reshape(-1), 6).reshape(6, 1, 1) for x in (scale, zero)]
    expected = (INT8[:, 0].astype(np.float32) - per_filter[1]) * per_filter[0]
    assert np.array_equal(layer.weight, expected)
    assert layer.stride == (2, 1)


def test_convinteger_takes_the_scale_from_behind_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("ConvInteger", ["xq", "w", "xz", "z"], ["t"], name="dw", group=6),
        node("Mul", "xs", "s", output="scales"),
        node("Cast", "t", output="real", to=TensorProto.FLOAT),
        node("Mul", "real", "scales", output="y"),
    ]
    tensors = {"w": INT8.view(np.uint8), "s": SCALES[:1], "z": np.uint8(128)}
    (layer,) = read(proto(nodes, tensors), tmp_path).layers
    expected = (INT8.view(np.uint8).astype(np.float32) - 128) * SCALES[0]
    assert np.array_equal(layer.weight, expected[:, 0])
    assert not layer.note
    (layer,) = read(proto(nodes[:2], tensors, output="t"), tmp_path).layers
    assert np.array_equal(layer.weight, INT8.view(np.uint8)[:, 0].astype(np.float32) - 128)
    assert "without their scale" in layer.note


def test_integers_without_zero_points(tmp_path: Path) -> None:
    scales = {"xs": SCALES[0], "xz": ZEROS[0], "w": INT8, "s": SCALES}
    quantised = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "s", "", "xs", "xz"], ["y"], name="dw", group=6
    )
    (layer,) = read(proto([quantised], scales), tmp_path).layers
    assert np.array_equal(layer.weight, INT8[:, 0] * SCALES.reshape(6, 1, 1))
    nodes = [
        helper.make_node("ConvInteger", ["x", "w"], ["t"], name="dw", group=6),
        node("Cast", "t", output="other", to=TensorProto.DOUBLE),
        node("Cast", "t", output="real", to=TensorProto.FLOAT),
        node("Mul", "xs", "s", output="scales"),
        node("Mul", "real", "scales", output="y"),
    ]
    ends: dict[str, list[int | None]] = {"x": [], "xs": []}
    (layer,) = read(proto(nodes, {"w": INT8, "s": SCALES[:1]}, ends), tmp_path).layers
    assert np.array_equal(layer.weight, INT8[:, 0] * SCALES[0])
    (layer,) = read(proto(nodes[:3], {"w": INT8}, output="real"), tmp_path).layers
    assert np.array_equal(layer.weight, INT8[:, 0])
    assert "without their scale" in layer.note


def test_channels_last_convolutions_of_onnxruntime(tmp_path: Path) -> None:
    """Its tools lay the weights out as (out, y, x, in / group); fused ones stay as they are."""
    last = np.ascontiguousarray(REAL.transpose(0, 2, 3, 1))
    nodes = [
        conv("last", y="t", group=6, domain="com.microsoft", name="plain", pads=[1, 1, 1, 1]),
        conv("w", "t", group=6, domain="com.microsoft", name="fused", strides=[2, 1]),
    ]
    nodes[0].op_type, nodes[1].op_type = "NhwcConv", "NhwcFusedConv"
    first, second = read(proto(nodes, {"last": last, "w": REAL + 1}), tmp_path).layers
    assert np.array_equal(first.weight, REAL[:, 0])
    assert np.array_equal(second.weight, (REAL + 1)[:, 0])
    assert (first.groups, first.padding, second.stride) == (6, (1, 1), (2, 1))


def test_shared_weights_count_once(tmp_path: Path) -> None:
    nodes = [
        conv(group=6, name="first", y="a"),
        node("Identity", "w", output="copy"),
        conv("copy", "a", "b", group=6, name="second"),
        conv("other", "b", group=6, name="third"),
    ]
    bank = read(proto(nodes, {"w": REAL, "other": REAL}), tmp_path)
    assert [layer.name for layer in bank.layers] == ["first", "third"]
    assert bank.skipped == [("net/second", "shares its weights with first, counted once")]


GIANT = {"v": REAL, "n": np.array([10**6, 1, 10**6, 1])}
UNKNOWN: dict[str, tuple[Nodes, Tensors, str]] = {
    "input": ([], {}, "they come from the input 'w'"),
    "computed": ([node("Mul", "x", "v")], {"v": REAL}, "they come from the input 'x'"),
    "random": ([node("RandomNormal", shape=[6, 1, 3, 3])], {}, "made by RandomNormal"),
    "giant": ([node("Tile", "v", "n")], GIANT, "made by Tile, which cannot be evaluated"),
    "foreign": ([node("Magic", "v", domain="elsewhere")], {"v": REAL}, "made by Magic"),
    "broadcast": (
        [node("DequantizeLinear", "v", "s", axis=1)],
        {"v": INT8, "s": SCALES},
        "in an unexpected shape (6, 6, 3, 3)",
    ),
    "wrong": ([node("Reshape", "v", "n")], {"v": REAL, "n": np.array([5, 5])}, "made by Reshape"),
    "cycle": ([node("Mul", "u", "u"), node("Mul", "w", "w", output="u")], {}, "more than 100"),
    "cycle of copies": ([node("Identity", "w")], {}, "more than 100"),
    "sequence": ([node("SequenceConstruct", "v", "v")], {"v": REAL}, "not as a dense tensor"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_weights_that_are_not_known_are_skipped_with_the_reason(tmp_path: Path, case: str) -> None:
    nodes, tensors, reason = UNKNOWN[case]
    inputs = {"x": [None] * 4} | ({"w": [6, 1, 3, 3]} if case == "input" else {})
    bank = read(proto([*nodes, conv(group=6)], tensors, inputs), tmp_path)
    assert not bank.layers
    assert bank.skipped[0][0] == "net/dw"
    assert reason in bank.skipped[0][1]


def test_sparse_initialisers_are_skipped_with_the_reason(tmp_path: Path) -> None:
    model = proto([conv(group=6)])
    values, indices = tensor("w", np.ones(2, np.float32)), tensor("i", np.array([3, 9]))
    sparse = helper.make_sparse_tensor(values, indices, [6, 1, 3, 3])
    model.graph.sparse_initializer.append(sparse)
    assert "sparse initialiser 'w'" in read(model, tmp_path).skipped[0][1]


# ------------------------------------------------------------------ subgraphs and functions


def subgraph(nodes: Nodes, tensors: Tensors | None = None, inputs: Sequence[Any] = ()) -> Any:
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    arrays = [tensor(name, value) for name, value in (tensors or {}).items()]
    return helper.make_graph(nodes, "sub", list(inputs), [out], arrays)


def test_branches_see_the_constants_around_them(tmp_path: Path) -> None:
    other = weights(6, 1, 5, 5)
    branches = {
        "then_branch": subgraph([conv("outer", "x", "t", group=6, name="then")]),
        "else_branch": subgraph([conv("w", "x", "e", group=6, name="else")], {"w": other}),
    }
    choice = helper.make_node("If", ["condition"], ["y"], **branches)
    after = conv("w", group=6, name="after", y="z")
    scaled = node("Mul", "w", "w", output="outer")
    tensors = {"condition": np.array(True), "w": REAL}
    bank = read(proto([scaled, choice, after], tensors), tmp_path)
    assert [layer.name for layer in bank.layers] == ["else", "then", "after"]  # as stored
    for layer, expected in zip(bank.layers, [other, REAL * REAL, REAL], strict=True):
        assert np.array_equal(layer.weight, expected[:, 0])


def test_a_state_of_a_loop_is_not_a_constant(tmp_path: Path) -> None:
    declared = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in ("i", "c", "w")]
    body = subgraph([conv(group=6, name="inside", y="t")], inputs=declared)
    loop = helper.make_node("Loop", ["n", "", "start"], ["y"], body=body)
    bank = read(proto([loop], {"n": np.array(3), "start": REAL}), tmp_path)
    reason = "its weights are no constant: they come from the input 'w'"
    assert bank.skipped == [("net/inside", reason)]


def local(name: str, nodes: Nodes, opset: int = 21, inputs: Sequence[str] = ("a", "b")) -> Any:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, ["c"], nodes, imports)


def test_local_functions_in_branches_and_functions(tmp_path: Path) -> None:
    inner = local("Inner", [conv("b", "a", "c", group=6, name="inside")])
    outer = local("Outer", [helper.make_node("Inner", ["a", "b"], ["c"], domain="local")])
    branches = {
        f"{way}_branch": subgraph([helper.make_node("Outer", ["x", w], [w + way], domain="local")])
        for way, w in (("then", "w"), ("else", "v"))
    }
    choice = helper.make_node("If", ["condition"], ["y"], **branches)
    tensors = {"condition": np.array(True), "w": REAL, "v": REAL + 1}
    bank = read(proto([choice], tensors, functions=[inner, outer]), tmp_path)
    found = sorted(layer.weight.tobytes() for layer in bank.layers)
    assert found == sorted(x.tobytes() for x in (REAL[:, 0], (REAL + 1)[:, 0]))


def test_functions_of_another_operator_set_are_named(tmp_path: Path) -> None:
    """The library puts none of these in place of its calls."""
    functions = [
        local("Old", [conv("b", "a", "c", group=6)], opset=11),
        local("Older", [helper.make_node("Mul", ["a", "b"], ["c"])], opset=11),
    ]
    calls = [helper.make_node(x.name, ["x", "w"], [x.name], domain="local") for x in functions]
    bank = read(proto([*calls, conv(group=6)], {"w": REAL}, functions=functions), tmp_path)
    assert np.array_equal(bank.layers[0].weight, REAL[:, 0])
    [(name, why)] = bank.skipped
    assert name == "net/Old" and "operator set" in why


def test_local_functions(tmp_path: Path) -> None:
    inside = helper.make_node("Conv", ["a", "b"], ["c"], name="inside")
    group = inside.attribute.add(name="group", ref_attr_name="g")
    group.type = onnx.AttributeProto.INT
    imports = [helper.make_opsetid("", 21)]
    function = helper.make_function("local", "Block", ["a", "b"], ["c"], [inside], imports, ["g"])
    calls = [
        helper.make_node("Block", ["x", "w"], ["t"], domain="local", g=6),
        helper.make_node("Block", ["t", "v"], ["y"], domain="local", g=6),
    ]
    other = weights(6, 1, 5, 5)
    bank = read(proto(calls, {"w": REAL, "v": other}, functions=[function]), tmp_path)
    assert bank.sizes == {(3, 3): 6, (5, 5): 6}
    assert np.array_equal(bank.layers[1].weight, other[:, 0])


# ------------------------------------------------------------------ external data


def with_external_data(location: str, folder: Path, file: Path | None) -> Any:
    """Build a model whose weights lie in an external file, and write that file."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(16) + REAL.tobytes())
    external = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=REAL.shape)
    external.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 16, "length": REAL.nbytes}.items():
        external.external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    return proto([conv(group=6)], {"w": external})


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin"])
def test_external_data_in_the_folder(tmp_path: Path, location: str) -> None:
    bank = read(with_external_data(location, tmp_path, tmp_path / location), tmp_path)
    assert np.array_equal(bank.layers[0].weight, REAL[:, 0])


def test_external_data_is_sought_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    model = with_external_data("w.bin", folder, folder / "w.bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "net.onnx").write_bytes(model.SerializeToString())
    bank = read_onnx(Path("models/net.onnx"), "net")
    assert np.array_equal(bank.layers[0].weight, REAL[:, 0])


@pytest.mark.parametrize("way", ["parent", "absolute", "link", "linked folder", "Constant"])
def test_external_data_elsewhere_is_refused_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder, outside = tmp_path / "models", tmp_path / "outside" / "w.bin"
    location = {
        "absolute": str(outside),
        "link": "link.bin",
        "linked folder": "linked/w.bin",
    }.get(way, "../outside/w.bin")
    model = with_external_data(location, folder, outside)
    if way == "link":
        (folder / location).symlink_to(outside)
    elif way == "linked folder":
        (folder / "linked").symlink_to(outside.parent)
    elif way == "Constant":
        value = model.graph.initializer[0]
        model = proto([node("Constant", value=value), conv(group=6)])
    helpers = onnx.external_data_helper
    monkeypatch.setattr(helpers, "load_external_data_for_tensor", lambda *_: pytest.fail("read"))
    assert "its own folder" in refusal(model, folder)


def test_external_data_of_an_evaluated_operator_is_never_read(tmp_path: Path) -> None:
    model = with_external_data("../w.bin", tmp_path / "models", tmp_path / "w.bin")
    value = model.graph.initializer[0]
    nodes = [node("ConstantOfShape", "shape", value=value), conv(group=6)]
    bank = read(proto(nodes, {"shape": np.array([6, 1, 3, 3])}), tmp_path / "models")
    assert "made by ConstantOfShape, which is not evaluated" in bank.skipped[0][1]


def test_external_data_that_is_missing_or_short(tmp_path: Path) -> None:
    model = with_external_data("w.bin", tmp_path, None)
    assert "lacks 'w.bin'; put it beside the model" in refusal(model, tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(20))
    assert "cannot be loaded" in refusal(model, tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would block
    model = with_external_data("pipe", tmp_path, None)
    assert "beside the model" in refusal(model, tmp_path)


def test_a_null_byte_in_a_location(tmp_path: Path) -> None:
    assert "its own folder" in refusal(with_external_data("a\0b", tmp_path, None), tmp_path)


def test_a_tensor_whose_file_is_not_named(tmp_path: Path) -> None:
    model = with_external_data("w.bin", tmp_path, tmp_path / "w.bin")
    del model.graph.initializer[0].external_data[:]
    assert "does not name" in refusal(model, tmp_path)


def test_external_data_in_the_cache_of_a_hub(tmp_path: Path) -> None:
    """A link to a blob of the same model; of another model it is refused."""
    model = with_external_data("w.bin", tmp_path, tmp_path / "w.bin")
    for name, owner in (("net", "net"), ("other", "net")):
        snapshot = tmp_path / f"models--org--{name}" / "snapshots" / "0a1b"
        blobs = tmp_path / f"models--org--{owner}" / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir(exist_ok=True)
        (blobs / "123").write_bytes((tmp_path / "w.bin").read_bytes())
        (snapshot / "w.bin").symlink_to(blobs / "123")
        if name == owner:
            assert np.array_equal(read(model, snapshot).layers[0].weight, REAL[:, 0])
        else:
            assert "link out of its own folder" in refusal(model, snapshot)


# ------------------------------------------------------------------ damage


def small() -> Any:
    constant = node("Constant", value=tensor("", weights(4, 1, 3, 3)), output="v")
    nodes = [constant, conv("v", "x", "t", group=4), conv("w", "t", group=2, name="grouped")]
    return proto(nodes, {"w": weights(4, 2, 3, 3)})


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    content = small().SerializeToString()
    assert read(content, tmp_path).sizes == {(3, 3): 4}
    for length in range(len(content)):
        refusal(content[:length], tmp_path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    refusal(content, tmp_path_factory.mktemp("random"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(small().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    try:
        assert isinstance(read(bytes(content), folder), FilterBank)
    except SourceError:
        refusal(bytes(content), folder)


DAMAGED: dict[str, Callable[[], tuple[Any, str]]] = {
    "too few weights": lambda: (
        proto([conv(group=9)], {"w": TensorProto(name="w", data_type=1, dims=[9, 1, 3, 3])}),
        "that cannot be loaded",
    ),
    "unknown type": lambda: (
        proto([conv(group=9)], {"w": TensorProto(name="w", data_type=99, dims=[9, 1, 3, 3])}),
        "that cannot be loaded",
    ),
    "undefined": lambda: (proto([conv("elsewhere")]), "'elsewhere' that it does not define"),
    "groups": lambda: (proto([conv(group=4)], {"w": REAL}), "in 4 group(s)"),
    "vector": lambda: (proto([conv(group=4)], {"w": REAL.ravel()}), "has weights 'w' of shape"),
    "few inputs": lambda: (
        proto([helper.make_node("QLinearConv", ["x", "s", "z", "w"], ["y"])], {"w": INT8}),
        "lacks its inputs",
    ),
    "no input": lambda: (proto([helper.make_node("Conv", ["x"], ["y"])]), "does not define"),
    "recursive": lambda: (
        proto(
            [helper.make_node("F", ["x"], ["y"], domain="local")],
            functions=[
                helper.make_function(
                    "local",
                    "F",
                    ["x"],
                    ["y"],
                    [helper.make_node("F", ["x"], ["y"], domain="local")],
                    [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
                )
            ],
        ),
        "cannot be inlined",
    ),
    "many": lambda: (  # 2 ** 40 nodes
        proto(
            [helper.make_node("F0", ["x"], ["y"], domain="local")],
            functions=[
                helper.make_function(
                    "local",
                    f"F{i}",
                    ["x"],
                    ["y"],
                    [
                        helper.make_node(f"F{i + 1}", [a], [b], domain="local")
                        for a, b in (("x", "z"), ("z", "y"))
                    ],
                    [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
                )
                for i in range(40)
            ],
        ),
        "cannot be inlined",
    ),
    "name": lambda: (
        proto([conv(group=6)], {"w": REAL}).SerializeToString().replace(b"dw", b"\xff\xfe"),
        "",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_said(tmp_path: Path, case: str) -> None:
    model, what = DAMAGED[case]()
    assert what in refusal(model, tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.onnx"):
        read_onnx(tmp_path / "nowhere.onnx", "net")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"keyfilters\[onnx\]"):
        read_onnx(tmp_path / "net.onnx", "net")

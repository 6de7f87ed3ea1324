"""One small network in every format, written by the tests' own code.

A pointwise convolution of 3 channels to 4, and `FILTERS` as a depthwise one, with a stride of
(2, 2), and one tap of padding or "same" padding where the format can tell.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.sources.encoders import Table, flatbuffer, message, packed

RNG = np.random.default_rng(7)
FILTERS = RNG.normal(size=(4, 3, 3)).astype(np.float32)
POINTWISE = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
OIHW = FILTERS[:, None]
HWCM = np.ascontiguousarray(np.moveaxis(FILTERS, 0, -1)[..., None])
HWIO = np.ascontiguousarray(POINTWISE.transpose(2, 3, 1, 0))
STATE = {"pw.weight": torch.from_numpy(POINTWISE), "dw.weight": torch.from_numpy(OIHW.copy())}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pw = nn.Conv2d(3, 4, 1, bias=False)
        self.dw = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
        self.load_state_dict(STATE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dw(self.pw(x))
        return out


# ------------------------------------------------------------------ PyTorch


def safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "net.safetensors")
    return folder / "net.safetensors"


def checkpoint(folder: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": STATE}, folder / "net.pth")
    return folder / "net.pth"


def legacy(folder: Path) -> Path:
    torch.save(STATE, folder / "net.pt", _use_new_zipfile_serialization=False)
    return folder / "net.pt"


def whole_module(folder: Path) -> Path:
    torch.save({"model": Net().eval(), "optimizer": None}, folder / "net.pt")
    return folder / "net.pt"


def plain_pickle(folder: Path) -> Path:
    (folder / "net.pkl").write_bytes(pickle.dumps({k: v.numpy() for k, v in STATE.items()}))
    return folder / "net.pkl"


def oldest(folder: Path) -> Path:
    """Write the tar archive of PyTorch before 0.2."""
    names = list(STATE)
    protocol = {"protocol": 2}
    storages = pickle.dumps(len(names), **protocol)
    tensors = pickle.dumps(len(names), **protocol)
    for i, name in enumerate(names):
        value = STATE[name]
        storages += pickle.dumps((i, "cpu", torch.FloatStorage), **protocol)
        storages += struct.pack("<q", value.numel()) + value.numpy().tobytes()
        tensors += pickle.dumps((10 + i, i, torch.FloatTensor), **protocol)
        tensors += struct.pack("<i4x", value.ndim)
        tensors += struct.pack(f"<{2 * value.ndim + 1}q", *value.shape, *value.stride(), 0)
    storages += pickle.dumps([], **protocol)  # views

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.number if isinstance(value, Held) else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({name: Held(str(10 + i)) for i, name in enumerate(names)})
    parts = {"storages": storages, "tensors": tensors, "pickle": file.getvalue()}
    with tarfile.open(folder / "net.pth", "w") as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder / "net.pth"


class Held:
    """Stands for a tensor that is stored elsewhere."""

    def __init__(self, number: str) -> None:
        self.number = number


def torchscript(folder: Path) -> Path:
    torch.jit.save(torch.jit.script(Net().eval()), folder / "net.pt")
    return folder / "net.pt"


def exported(folder: Path) -> Path:
    program = torch.export.export(Net().eval(), (torch.ones(1, 3, 8, 8),))
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2"


# ------------------------------------------------------------------ ONNX, TFLite


def onnx(folder: Path) -> Path:
    import onnx as library
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "pw"], ["y"], name="pw"),
        helper.make_node(
            "Conv", ["y", "dw"], ["z"], name="dw", group=4, strides=[2, 2], pads=[1, 1, 1, 1]
        ),
    ]
    shapes = {"x": [1, 3, 8, 8], "z": [1, 4, 4, 4]}
    ends = [helper.make_tensor_value_info(x, 1, y) for x, y in shapes.items()]
    tensors = [numpy_helper.from_array(x, y) for x, y in ((POINTWISE, "pw"), (OIHW, "dw"))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    opset = [helper.make_opsetid("", 17)]
    library.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "net.onnx")
    return folder / "net.onnx"


def ort(folder: Path) -> Path:
    """Write an ONNX graph in the flatbuffer of onnxruntime."""

    def tensor(name: str, value: Any) -> Table:
        data = np.frombuffer(value.tobytes(), np.uint8)
        return Table({0: name, 2: np.array(value.shape, np.int64), 3: ("i", 1), 4: data})

    def conv(index: int, name: str, names: list[str], ints: dict[str, list[int]]) -> Table:
        attributes = [
            Table({0: key, 2: ("i", 7), 9: np.array(value, np.int64)})
            for key, value in ints.items()
        ]
        held = {0: name, 2: "", 4: ("i", index), 5: "Conv", 8: names[:-1], 9: names[-1:]}
        return Table({**held, 10: attributes})

    where = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    group = Table({0: "group", 2: ("i", 2), 4: ("q", 4)})
    depthwise = conv(1, "dw", ["y", "dw", "z"], where)
    depthwise[10].append(group)
    graph = Table(
        {
            0: [tensor("pw", POINTWISE), tensor("dw", OIHW)],
            2: [conv(0, "pw", ["x", "pw", "y"], {}), depthwise],
            5: ["x"],
            6: ["z"],
        }
    )
    session = flatbuffer(Table({0: "1.17", 1: Table({7: graph})}), b"ORTM")
    (folder / "net.ort").write_bytes(session)
    return folder / "net.ort"


def tflite(folder: Path) -> Path:
    from tests.sources.tflite_builder import Model

    model = Model()
    image = model.tensor([1, 8, 8, 4], name="image")
    weight = model.tensor([1, 3, 3, 4], np.moveaxis(FILTERS, 0, -1)[None].copy(), name="dw")
    model.operator(4, [image, weight], [model.tensor([], name="made")], stride=(2, 2))
    (folder / "net.tflite").write_bytes(model.write())
    return folder / "net.tflite"


# ------------------------------------------------------------------ TensorFlow

LAYERS = [
    {"class_name": "Conv2D", "config": {"name": "pw", "padding": "same", "strides": [1, 1]}},
    {
        "class_name": "DepthwiseConv2D",
        "config": {"name": "dw", "padding": "same", "strides": [2, 2]},
    },
]
CONFIG = {"class_name": "Functional", "config": {"name": "net", "layers": LAYERS}}


def keras_h5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "net.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(CONFIG)
        file["model_weights/pw/pw/kernel:0"] = HWIO
        file["model_weights/dw/dw/depthwise_kernel:0"] = HWCM
    return folder / "net.h5"


def keras_zip(folder: Path) -> Path:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/conv2d/vars/0"] = HWIO
        file["layers/depthwise_conv2d/vars/0"] = HWCM
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", content.getvalue())
    return folder / "net.keras"


def keras_weights(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "net.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = HWIO
        file["layers/depthwise_conv2d/vars/0"] = HWCM
        file["layers/depthwise_conv2d/vars"].attrs["name"] = "dw"
    return folder / "net.weights.h5"


def tensor_proto(value: Any) -> dict[int, Any]:
    shape = {2: [{1: x} for x in value.shape]}
    return {1: 1, 2: shape, 4: value.tobytes()}


def node(name: str, op: str, inputs: list[str], **attributes: Any) -> dict[int, Any]:
    return {1: name, 2: op, 3: inputs, 5: [{1: k, 2: v} for k, v in attributes.items()]}


def conv_node(name: str, op: str, inputs: list[str], stride: int) -> dict[int, Any]:
    strides = {1: {3: packed([1, stride, stride, 1])}}
    return node(name, op, inputs, strides=strides, padding={2: "SAME"}, data_format={2: "NHWC"})


def frozen_graph(folder: Path) -> Path:
    nodes = [
        node("x", "Placeholder", []),
        node("pw/w", "Const", [], value={8: tensor_proto(HWIO)}),
        node("dw/w", "Const", [], value={8: tensor_proto(HWCM)}),
        node("dw/read", "Identity", ["dw/w"]),
        conv_node("pw", "Conv2D", ["x", "pw/w"], 1),
        conv_node("dw", "DepthwiseConv2dNative", ["pw", "dw/read"], 2),
    ]
    (folder / "net.pb").write_bytes(message({1: nodes, 4: {1: 1}}))
    return folder / "net.pb"


def bundle(stem: Path, tensors: dict[str, Any]) -> None:
    """Write a tensor bundle: a table with one block, and one file of data."""
    data, entries = b"", {"": message({1: 1})}
    for name, value in sorted(tensors.items()):
        shape = {2: [{1: x} for x in value.shape]}
        entries[name] = message({1: 1, 2: shape, 4: len(data), 5: value.nbytes})
        data += value.tobytes()
    stem.with_name(f"{stem.name}.data-00000-of-00001").write_bytes(data)

    def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(
            bytes([0]) + packed([len(key), len(value)]) + key + value for key, value in pairs
        )
        return body + struct.pack("<II", 0, 1)

    first = block([(key.encode(), value) for key, value in entries.items()])
    table = first + b"\0\0\0\0\0"
    start = len(table)
    index = block([(b"zzz", packed([0, len(first)]))])
    table += index + b"\0\0\0\0\0"
    footer = packed([0, 0, start, len(index)])
    table += footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    stem.with_name(f"{stem.name}.index").write_bytes(table)


def tf_checkpoint(folder: Path) -> Path:
    slot = "net/dw/depthwise_weights/Momentum"
    tensors = {"net/pw/weights": HWIO, "net/dw/depthwise_weights": HWCM, slot: HWCM + 1}
    bundle(folder / "model.ckpt", tensors)
    return folder / "model.ckpt.index"


def saved_model(folder: Path) -> Path:
    root = folder / "net"
    (root / "variables").mkdir(parents=True, exist_ok=True)
    bundle(root / "variables" / "variables", {"v/0": HWCM, "v/1": HWIO})
    inner = [
        node("read", "ReadVariableOp", ["dw"]),
        node("pw_read", "ReadVariableOp", ["pw"]),
        conv_node("conv", "Conv2D", ["x", "pw_read:value:0"], 1),
        conv_node("deep", "DepthwiseConv2dNative", ["conv:output:0", "read:value:0"], 2),
    ]
    names = {1: 7, 2: {2: [{1: 2}]}, 8: ["v/0", "v/1"]}
    restore = [
        node("names", "Const", [], value={8: names}),
        node("r", "RestoreV2", ["prefix", "names", "slices"]),
        node("i0", "Identity", ["r:tensors:0"]),
        node("i1", "Identity", ["r:tensors:1"]),
        node("a0", "AssignVariableOp", ["v0", "i0:output:0"]),
        node("a1", "AssignVariableOp", ["v1", "i1:output:0"]),
    ]

    def function(name: str, arguments: list[str], nodes: list[Any]) -> dict[int, Any]:
        return {1: {1: name, 2: [{1: x} for x in arguments]}, 3: nodes}

    library = {
        1: [
            function("call", ["x", "dw", "pw"], inner),
            function("restore", ["prefix", "v0", "v1"], restore),
        ]
    }
    handle = {"dtype": {6: 1}}
    nodes = [
        node("input", "Placeholder", []),
        node("h0", "VarHandleOp", [], shared_name={2: "dw/depthwise_kernel_1"}, **handle),
        node("h1", "VarHandleOp", [], shared_name={2: "pw/kernel_1"}, **handle),
        node("go", "StatefulPartitionedCall", ["input", "h0", "h1"], f={10: {1: "call"}}),
        node("go2", "StatefulPartitionedCall", ["input", "h0", "h1"], f={10: {1: "restore"}}),
    ]
    graph = {1: nodes, 2: library}
    (root / "saved_model.pb").write_bytes(message({1: 1, 2: {2: graph}}))
    return root


def manifest(folder: Path, names: tuple[str, str]) -> list[Any]:
    (folder / "net.bin").write_bytes(HWIO.tobytes() + HWCM.tobytes())
    weights = [
        {"name": name, "shape": list(value.shape), "dtype": "float32"}
        for name, value in zip(names, (HWIO, HWCM), strict=True)
    ]
    return [{"paths": ["net.bin"], "weights": weights}]


def tfjs_weights(folder: Path) -> Path:
    content = manifest(folder, ("pw/filters", "dw/depthwise_filter"))
    (folder / "net-weights_manifest.json").write_text(json.dumps(content))
    return folder / "net-weights_manifest.json"


def tfjs_layers(folder: Path) -> Path:
    content = {
        "format": "layers-model",
        "modelTopology": {"model_config": CONFIG},
        "weightsManifest": manifest(folder, ("pw/kernel", "dw/depthwise_kernel")),
    }
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.json"


def tfjs_graph(folder: Path) -> Path:
    def conv(name: str, op: str, inputs: list[str], stride: int) -> dict[str, Any]:
        strides = {"list": {"i": ["1", str(stride), str(stride), "1"]}}
        attributes = {"strides": strides, "padding": {"s": "U0FNRQ=="}}
        return {"name": name, "op": op, "input": inputs, "attr": attributes}

    nodes = [
        {"name": "x", "op": "Placeholder", "attr": {}},
        {"name": "a", "op": "Const", "attr": {}},
        {"name": "b", "op": "Const", "attr": {}},
        conv("pw", "Conv2D", ["x", "a"], 1),
        conv("dw", "FusedDepthwiseConv2dNative", ["pw", "b"], 2),
    ]
    content = {
        "format": "graph-model",
        "modelTopology": {"node": nodes},
        "weightsManifest": manifest(folder, ("a", "b")),
    }
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.json"


# ------------------------------------------------------------------ runtimes


def openvino(folder: Path) -> Path:
    (folder / "net.bin").write_bytes(POINTWISE.tobytes() + FILTERS.tobytes())

    def const(number: int, shape: str, offset: int, size: int) -> str:
        dims = "".join(f"<dim>{x}</dim>" for x in shape.split(","))
        return (
            f'<layer id="{number}" name="c{number}" type="Const"><data element_type="f32" '
            f'shape="{shape}" offset="{offset}" size="{size}"/><output><port id="0">{dims}</port>'
            "</output></layer>"
        )

    def conv(number: int, kind: str, name: str, stride: int, pad: int) -> str:
        return (
            f'<layer id="{number}" name="{name}" type="{kind}"><data strides="{stride},{stride}" '
            f'dilations="1,1" pads_begin="{pad},{pad}" pads_end="{pad},{pad}"/>'
            '<input><port id="0"/><port id="1"/></input><output><port id="2"/></output></layer>'
        )

    layers = (
        const(0, "4,3,1,1", 0, 48)
        + const(1, "4,1,1,3,3", 48, 144)
        + '<layer id="2" name="x" type="Parameter"><output><port id="0"/></output></layer>'
        + conv(3, "Convolution", "pw", 1, 0)
        + conv(4, "GroupConvolution", "dw", 2, 1)
    )
    edges = "".join(
        f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>'
        for a, b, c, d in ((2, 0, 3, 0), (0, 0, 3, 1), (3, 2, 4, 0), (1, 0, 4, 1))
    )
    text = f'<?xml version="1.0"?><net name="n" version="11"><layers>{layers}</layers>'
    (folder / "net.xml").write_text(f"{text}<edges>{edges}</edges></net>")
    return folder / "net.xml"


def ncnn(folder: Path) -> Path:
    bias = np.zeros(4, np.float32).tobytes()
    mark = struct.pack("<I", 0)
    content = mark + POINTWISE.tobytes() + bias + np.ones(16, np.float32).tobytes()
    (folder / "net.bin").write_bytes(content + mark + FILTERS.tobytes())
    lines = [
        "7767517",
        "4 4",
        "Input input 0 1 x",
        "Convolution pw 1 1 x y 0=4 1=1 5=1 6=12",
        "BatchNorm bn 1 1 y z 0=4",
        "ConvolutionDepthWise dw 1 1 z w 0=4 1=3 3=2 4=1 6=36 7=4 -23310=1,0.5",
    ]
    (folder / "net.param").write_text("\n".join(lines) + "\n")
    return folder / "net.param"


def ncnn_binary(folder: Path) -> Path:
    mark = struct.pack("<I", 0)
    (folder / "net.bin").write_bytes(mark + POINTWISE.tobytes() + mark + FILTERS.tobytes())
    layers = [
        (6, 1, 1, 0, 1, 0, 4, 1, 1, 6, 12, -233),
        (42, 1, 1, 1, 2, 0, 4, 1, 3, 3, 2, 4, 1, 6, 36, 7, 4, -233),
    ]
    numbers = [7767517, 2, 3, *(x for layer in layers for x in layer)]
    (folder / "net.param.bin").write_bytes(struct.pack(f"<{len(numbers)}i", *numbers))
    return folder / "net.param.bin"


def core_ml(folder: Path) -> Path:
    edges = {1: {10: [{1: 1, 2: 1}, {1: 1, 2: 1}]}}

    def conv(name: str, groups: int, stride: int, weight: Any) -> dict[int, Any]:
        out, each, k_y, k_x = weight.shape
        held = {
            1: out, 2: each, 10: groups, 20: packed([k_y, k_x]), 30: packed([stride, stride]),
            50: edges if groups > 1 else b"", 90: {1: weight.tobytes()},
        }  # fmt: skip
        return {1: name, 2: "x", 3: "y", 100: held}

    network = {1: [conv("pw", 1, 1, POINTWISE), conv("dw", 4, 2, OIHW)]}
    (folder / "net.mlmodel").write_bytes(message({1: 4, 2: {1: {1: "x"}}, 500: network}))
    return folder / "net.mlmodel"


def core_ml_package(folder: Path) -> Path:
    root = folder / "net.mlpackage"
    data = root / "Data" / "com.apple.CoreML"
    (data / "weights").mkdir(parents=True, exist_ok=True)
    items = {"a": {"path": "com.apple.CoreML/model.mlmodel"}}
    content = {"itemInfoEntries": items, "rootModelIdentifier": "a"}
    (root / "Manifest.json").write_text(json.dumps(content))
    blob = bytes(64) + struct.pack("<IIQQ", 0xDEADBEEF, 2, FILTERS.nbytes, 128) + bytes(40)
    (data / "weights" / "weight.bin").write_bytes(blob + FILTERS.tobytes())

    def kind(number: int, shape: tuple[int, ...]) -> dict[int, Any]:
        return {1: {1: number, 2: len(shape), 3: [{1: {1: x}} for x in shape]}}

    def const(name: str, value: dict[int, Any]) -> dict[int, Any]:
        return {1: "const", 3: {1: name}, 5: {1: "val", 2: value}}

    def ints(name: str, *values: int) -> dict[int, Any]:
        held = {3: {1: {2: {1: packed(values)}}}}
        return const(name, {2: kind(23, (len(values),)), **held})

    blob_value = {1: "@model_path/weights/weight.bin", 2: 64}
    operations = [
        const("w", {2: kind(11, (4, 1, 3, 3)), 5: blob_value}),
        ints("s", 2, 2),
        ints("p", 1, 1, 1, 1),
        ints("g", 4),
        const("t", {2: kind(2, ()), 3: {1: {4: {1: "custom"}}}}),
        {
            1: "conv",
            2: [
                {1: key, 2: {1: {1: name}}}
                for key, name in (
                    ("x", "x"), ("weight", "w"), ("strides", "s"), ("pad", "p"), ("groups", "g"),
                    ("pad_type", "t"),
                )
            ],
            3: {1: "dw"},
        },
    ]  # fmt: skip
    function = {3: {1: "CoreML6", 2: {3: operations}}}
    program = {1: 1, 2: {1: "main", 2: function}}
    (data / "model.mlmodel").write_bytes(message({1: 7, 2: {1: {1: "x"}}, 502: program}))
    return root


def paddle(folder: Path) -> Path:
    tensors = {"a.w_0": POINTWISE, "b.w_0": OIHW}
    content = b""
    for _, value in sorted(tensors.items()):
        described = message({1: 5, 2: list(value.shape)})
        content += struct.pack("<IQI", 0, 0, 0) + struct.pack("<i", len(described)) + described
        content += value.tobytes()
    (folder / "net.pdiparams").write_bytes(content)

    def operator(kind: str, weight: str, groups: int, stride: int, pad: int) -> dict[int, Any]:
        def ints(name: str, *values: int) -> dict[int, Any]:
            return {1: name, 2: 3, 6: list(values)}

        return {
            1: [{1: "Input", 2: "x"}, {1: "Filter", 2: weight}],
            2: [{1: "Output", 2: "y"}],
            3: kind,
            4: [
                ints("strides", stride, stride),
                ints("paddings", pad, pad),
                ints("dilations", 1, 1),
                {1: "groups", 2: 0, 3: groups},
                {1: "padding_algorithm", 2: 2, 5: "EXPLICIT"},
            ],
        }

    variables = [{1: name, 2: {1: 7}, 3: 1} for name in tensors]
    operators = [
        operator("conv2d", "a.w_0", 1, 1, 0),
        operator("depthwise_conv2d", "b.w_0", 4, 2, 1),
    ]
    block = {1: 0, 2: 0, 3: variables, 4: operators}
    (folder / "net.pdmodel").write_bytes(message({1: block, 4: {1: 0}}))
    return folder / "net.pdmodel"


def caffe(folder: Path) -> Path:
    def layer(name: str, weight: Any, **params: int) -> dict[int, Any]:
        numbers = {"groups": 5, "stride": 6, "pad": 3}
        held = {1: weight.shape[0], **{numbers[k]: v for k, v in params.items()}}
        blob = {5: weight.tobytes(), 7: {1: packed(weight.shape)}}
        return {1: name, 2: "Convolution", 7: [blob], 106: held}

    layers = [layer("pw", POINTWISE), layer("dw", OIHW, groups=4, stride=2, pad=1)]
    (folder / "net.caffemodel").write_bytes(message({1: "net", 100: layers}))
    return folder / "net.caffemodel"


def darknet(folder: Path) -> Path:
    text = (
        "[net]\nchannels=3\n\n[convolutional]\nfilters=4\nsize=1\nstride=1\n"
        "[convolutional]\nbatch_normalize=1\nfilters=4\ngroups=4\nsize=3\nstride=2\npad=1\n"
        "[route]\nlayers=-1,-2\n[yolo]\n"
    )
    (folder / "net.cfg").write_text(text)
    parts = [np.zeros(4, "<f4"), POINTWISE, np.zeros(16, "<f4"), FILTERS]
    header = struct.pack("<3iq", 0, 2, 5, 1000)
    (folder / "net.weights").write_bytes(header + b"".join(x.tobytes() for x in parts))
    return folder / "net.weights"


def mnn(folder: Path) -> Path:
    def operator(name: str, kind: int, weight: Any, group: int, **told: int) -> Table:
        common = Table(
            {
                0: ("i", told["pad"]), 1: ("i", told["pad"]), 2: ("i", weight.shape[-1]),
                3: ("i", weight.shape[-2]), 4: ("i", told["stride"]), 5: ("i", told["stride"]),
                9: ("i", group), 10: ("i", weight.shape[0]), 11: ("i", told["inputs"]),
            }
        )  # fmt: skip
        main = Table({0: common, 1: weight.ravel()})
        return Table({1: ("b", 9), 2: main, 3: name, 5: ("i", kind)})

    operators = [
        operator("pw", 12, POINTWISE, 1, pad=0, stride=1, inputs=3),
        operator("dw", 13, FILTERS, 4, pad=1, stride=2, inputs=4),
    ]
    (folder / "net.mnn").write_bytes(flatbuffer(Table({3: operators})))
    return folder / "net.mnn"


# ------------------------------------------------------------------ arrays


def numpy_arrays(folder: Path) -> Path:
    np.savez(folder / "net.npz", **{k: v.numpy() for k, v in STATE.items()})
    return folder / "net.npz"


def numpy_kernels(folder: Path) -> Path:
    arrays = {"pw/kernel": HWIO, "dw/depthwise_kernel": HWCM}
    np.savez_compressed(folder / "net.npz", **arrays)
    return folder / "net.npz"


def flax(folder: Path) -> Path:
    import msgpack

    def leaf(value: Any) -> Any:
        content = msgpack.packb((value.shape, value.dtype.name, value.tobytes()))
        return msgpack.ExtType(1, content)

    kernel = np.ascontiguousarray(HWCM.transpose(0, 1, 3, 2))
    tree = {"params": {"pw": {"kernel": leaf(HWIO)}, "dw": {"kernel": leaf(kernel)}}}
    (folder / "net.msgpack").write_bytes(msgpack.packb(tree))
    return folder / "net.msgpack"


TINY: dict[str, Callable[[Path], Path]] = {
    x.__name__: x
    for x in (
        safetensors, checkpoint, legacy, whole_module, plain_pickle, oldest, torchscript, exported,
        onnx, ort, tflite, keras_h5, keras_zip, keras_weights, frozen_graph, tf_checkpoint,
        saved_model, tfjs_weights, tfjs_layers, tfjs_graph, openvino, ncnn, ncnn_binary, core_ml,
        core_ml_package, paddle, caffe, darknet, mnn, numpy_arrays, numpy_kernels, flax,
    )
}  # fmt: skip
# What libraries some formats need, by their import names.
NEEDS = {
    "onnx": ["onnx"], "ort": ["onnx", "flatbuffers"], "tflite": ["tflite"], "mnn": ["flatbuffers"],
    "keras_h5": ["h5py", "pyfive"], "keras_zip": ["h5py", "pyfive"],
    "keras_weights": ["h5py", "pyfive"], "flax": ["msgpack"],
}  # fmt: skip
# Formats that tell names and shapes only, or leave out some of the geometry.
NAMES_ONLY = {
    *(
        "safetensors",
        "checkpoint",
        "legacy",
        "plain_pickle",
        "oldest",
        "torchscript",
        "tfjs_weights",
    ),
    *("keras_weights", "tf_checkpoint", "numpy_arrays", "numpy_kernels", "flax"),
}
SAME = {
    *("keras_h5", "keras_zip", "frozen_graph", "saved_model", "tfjs_layers", "tfjs_graph"),
}

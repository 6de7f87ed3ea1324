"""Replacing filters inside ONNX files, run by onnxruntime."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.errors import KeyFiltersError, MissingExtraError, SourceError
from keyfilters.keyset import KeySet
from keyfilters.surgery.files import replace_in_file
from keyfilters.surgery.onnx_files import open_onnx
from keyfilters.surgery.replace import replace_filters_

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.sources.test_onnx_files import (  # noqa: E402
    BFLOAT16,
    INT8,
    REAL,
    SCALES,
    ZEROS,
    conv,
    node,
    subgraph,
    tensor,
    weights,
)
from tests.sources.test_onnx_files import proto as without_shape  # noqa: E402

KEYS = [KeySet.random(8, size=k, seed=k) for k in (3, 5, 7)]
KEYS3 = KEYS[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def proto(*args: Any, **options: Any) -> Any:
    """Build a model that passes ONNX's checker, which wants the outputs' dimensions."""
    model = without_shape(*args, **options)
    for _ in range(4):
        model.graph.output[0].type.tensor_type.shape.dim.add()
    return model


def replace(model: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Replace the filters of a model; return the model that was written and the report."""
    source, target = folder / "net.onnx", folder / "new.onnx"
    source.write_bytes(model.SerializeToString())
    report = replace_in_file(source, target, KEYS, **options)
    assert source.read_bytes() == model.SerializeToString()
    return onnx.load(target), report.set_index("layer")


def run(model: Any, **feeds: Any) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, feeds)[0]


def on_keys(filters: Any) -> float:
    """Return the largest distance of a filter from the nearest line a · key + b, relative."""
    filters = np.asarray(filters, np.float64).reshape(-1, *filters.shape[-2:])
    keys = next(k for k in KEYS if k.size == filters.shape[-1])
    norms = np.linalg.norm(filters, axis=(1, 2))  # real files hold filters of 1e-39
    return float((keys.assign(filters).residual / np.maximum(norms, 1e-30)).max())


def graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for inner in (a.g for n in graph.node for a in n.attribute if a.HasField("g")):
        yield from graphs(inner)


def stored(model: Any) -> dict[tuple[int, str], bytes]:
    """Return the initialisers of a model and its subgraphs, and its Constants, byte by byte."""
    found = {}
    for i, graph in enumerate(graphs(model.graph)):
        for x in graph.initializer:
            if x.data_location == TensorProto.DEFAULT:  # said or not said
                x.ClearField("data_location")
        found |= {(i, x.name): x.SerializeToString() for x in graph.initializer}
        for x in graph.node:
            if x.op_type == "Constant":
                found[i, x.output[0]] = x.SerializeToString()
    return found


def changed(old: Any, new: Any) -> set[str]:
    """Return the names of the constants that differ, after checking that nothing else does."""
    before, after = stored(old), stored(new)
    assert list(before) == list(after)
    names = {key for key in before if before[key] != after[key]}
    a, b = onnx.ModelProto(), onnx.ModelProto()
    for copied, model in ((a, old), (b, new)):
        copied.CopyFrom(model)
        for i, graph in enumerate(graphs(copied.graph)):
            for x in graph.initializer:
                if (i, x.name) in names:
                    x.Clear()
            for x in graph.node:
                if x.op_type == "Constant" and (i, x.output[0]) in names:
                    x.Clear()
    assert a.SerializeToString() == b.SerializeToString()
    return {name for _, name in names}


# ------------------------------------------------------------------ outputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.mixing = nn.Conv2d(8, 8, 1)
        self.multiplied = nn.Conv2d(8, 16, 3, stride=(2, 1), dilation=(1, 2), groups=8)
        self.row = nn.Conv2d(16, 16, (1, 7), padding=(0, 3), groups=16, bias=False)
        self.last = nn.Conv2d(16, 16, 7, groups=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.relu(layer(x))
        return x


def exported(net: nn.Module) -> Any:
    nodes, tensors, x = [], {}, "x"
    for name, layer in net.named_children():
        assert isinstance(layer, nn.Conv2d)
        parameters = {f"{name}.{k}": v.numpy().copy() for k, v in layer.state_dict().items()}
        pads = [layer.padding[0], layer.padding[1]] * 2
        geometry = {"strides": layer.stride, "dilations": layer.dilation, "pads": pads}
        inputs = [x, *parameters]
        nodes += [
            helper.make_node("Conv", inputs, [name], name=name, group=layer.groups, **geometry),
            helper.make_node("Relu", [name], [x := "y" if name == "last" else f"{name}.relu"]),
        ]
        tensors |= parameters
    return proto(nodes, tensors)


def test_outputs_and_bytes_are_those_of_the_module_in_memory(folder: Path) -> None:
    torch.manual_seed(0)
    net, image = Net(), torch.randn(1, 8, 20, 24)
    old = exported(net)
    new, report = replace(old, folder)
    expected = replace_filters_(net, KEYS).set_index("layer")
    assert report.equals(expected.loc[report.index])
    assert report["left"].to_dict() == {
        "first": "",
        "multiplied": "",
        "row": "filters of 1×7, the keys are 3×3, 5×5, 7×7",
        "last": "",
    }
    assert new.SerializeToString() == exported(net).SerializeToString()
    assert changed(old, new) == {"first.weight", "multiplied.weight", "last.weight"}
    output = run(folder / "new.onnx", x=image.numpy())
    assert np.array_equal(output, run(exported(net), x=image.numpy()))
    assert not np.allclose(output, run(old, x=image.numpy()), atol=1e-3)
    with torch.no_grad():
        np.testing.assert_allclose(output, net(image).numpy(), atol=1e-5)


def test_names_are_those_of_the_reader_and_choose_layers(folder: Path) -> None:
    torch.manual_seed(0)
    old = exported(Net())
    new, report = replace(old, folder, layers=["m*", "last"])
    bank = kf.read(folder / "net.onnx")
    depths = {layer.name: layer.depth for layer in bank.layers}
    assert set(depths) == set(report.index)
    assert report["depth"]["last"] == depths["last"] == 1
    assert report["depth"]["multiplied"] == pytest.approx(depths["multiplied"])
    assert report["left"]["first"] == "not among the layers asked for"
    assert changed(old, new) == {"multiplied.weight", "last.weight"}
    with pytest.raises(KeyFiltersError, match=r"is called 'lest'; the nearest names are: last"):
        replace(old, folder, layers="lest")
    with pytest.raises(KeyFiltersError, match="no depthwise convolution"):
        replace(proto([conv()], {"w": weights(4, 4, 3, 3)}), folder)


# ------------------------------------------------------------------ where weights are stored


def cast(x: str = "v") -> Any:
    return node("Cast", x, to=TensorProto.FLOAT)


def typed(name: str, kind: Any, values: Any = REAL) -> Any:
    """Return a tensor in its type's own field instead of raw bytes."""
    return helper.make_tensor(name, kind, values.shape, values.ravel().tolist())


HALF = REAL.astype(np.float16)
STORED: dict[str, tuple[list[Any], dict[str, Any], str, float]] = {
    "initialiser": ([], {"w": REAL}, "w", 1e-6),
    "typed": ([], {"w": typed("w", TensorProto.FLOAT)}, "w", 1e-6),
    "constant node": ([node("Constant", value=tensor("", REAL))], {}, "w", 1e-6),
    "copies": ([node("Identity", "v", output="u"), cast("u")], {"v": HALF}, "v", 2e-3),
    "float16": ([cast()], {"v": HALF}, "v", 2e-3),
    "float16 typed": ([cast()], {"v": typed("v", TensorProto.FLOAT16)}, "v", 2e-3),
    "bfloat16": ([cast()], {"v": typed("v", TensorProto.BFLOAT16, BFLOAT16)}, "v", 2e-2),
    "float64": ([cast()], {"v": REAL.astype(np.float64)}, "v", 1e-6),
    "float64 typed": ([cast()], {"v": typed("v", TensorProto.DOUBLE)}, "v", 1e-6),
}


@pytest.mark.parametrize("way", STORED)
def test_every_way_to_store_a_weight(folder: Path, way: str) -> None:
    nodes, tensors, name, tolerance = STORED[way]
    tensors = {**tensors, "other": REAL, "half": HALF}
    old = proto([*nodes, conv(group=6)], tensors)
    new, report = replace(old, folder)
    assert report["left"].to_dict() == {"dw": ""}
    assert changed(old, new) == {name}
    (layer,) = kf.read(folder / "new.onnx").layers
    assert on_keys(layer.weight) < tolerance < on_keys(REAL)
    held = [x for x in new.graph.initializer if x.name == name]
    if held:
        (was,) = (x for x in old.graph.initializer if x.name == name)
        assert (held[0].data_type, held[0].dims) == (was.data_type, was.dims)
    image = weights(1, 6, 9, 9)
    expected = proto([conv(group=6)], {"w": layer.weight[:, None]})
    assert np.allclose(run(new, x=image), run(expected, x=image), atol=1e-6)


QUANTISED = [node("DequantizeLinear", "q", "s", "z", axis=0)]
FAKE = [node("QuantizeLinear", "v", "s", "z", output="q", name="round", axis=0), *QUANTISED]
SCALED = {"s": SCALES, "z": ZEROS}
LEFT: dict[str, tuple[Sequence[Any], dict[str, Any], str]] = {
    "int8": (QUANTISED, {"q": INT8, **SCALED}, "are quantised, stored as INT8"),
    "rounded": (FAKE, {"v": REAL, **SCALED}, "are also used by QuantizeLinear 'round'"),
    "cast to integers": (
        [node("Cast", "v", output="i", to=TensorProto.INT32), cast("i")],
        {"v": REAL},
        "are also used by Cast 'i'",
    ),
    "int8 cast": ([cast()], {"v": INT8}, "stored as INT8"),
    "transposed": (
        [node("Transpose", "v", perm=[3, 2, 0, 1])],
        {"v": np.ascontiguousarray(REAL.transpose(2, 3, 1, 0))},
        "made by Transpose, and not stored",
    ),
    "product": ([node("Mul", "v", "s")], {"v": REAL, "s": SCALES[0]}, "made by Mul, and not"),
    "random": ([node("RandomNormal", shape=[6, 1, 3, 3])], {}, "made by RandomNormal"),
    "normalised": (
        [node("ReduceMean", "w", output="m")],
        {"w": REAL},
        "are also used by ReduceMean 'm', which would change",
    ),
    "dense": (
        [conv("w", "grey", "g", name="grey")],
        {"w": REAL, "grey": weights(1, 1, 9, 9)},
        "also used by Conv 'grey'",
    ),
    "transposed convolution": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["g"], name="up", group=6)],
        {"w": REAL},
        "also used by ConvTranspose 'up'",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_weights_that_cannot_be_written_are_left_with_the_reason(folder: Path, case: str) -> None:
    nodes, tensors, reason = LEFT[case]
    also = conv("good", "x", "other", group=6, name="also")
    old = proto([*nodes, conv(group=6), also], {**tensors, "good": REAL + 1})
    new, report = replace(old, folder)
    assert reason in report["left"]["dw"]
    assert report["left"]["also"] == ""
    assert changed(old, new) == {"good"}
    alone = proto([*nodes, conv(group=6)], tensors)
    with pytest.raises(KeyFiltersError, match="nothing would be replaced"):
        replace(alone, folder)


def test_weights_that_are_filtered_themselves_stay(folder: Path) -> None:
    nodes = [conv(group=6), conv("k", "w", "g", name="on weights", group=6)]
    old = proto(nodes, {"w": REAL, "k": REAL + 1})
    new, report = replace(old, folder)
    assert "also used by Conv 'on weights'" in report["left"]["dw"]
    assert changed(old, new) == {"k"}


def test_layers_not_asked_for_keep_every_byte(folder: Path) -> None:
    nodes = [conv("v", "x", "t", group=6, name="typed"), conv("w", "t", group=6)]
    old = proto(nodes, {"v": typed("v", TensorProto.FLOAT), "w": REAL})
    new, _ = replace(old, folder, layers=["dw"])
    assert changed(old, new) == {"w"}


def test_an_output_of_the_graph_stays(folder: Path) -> None:
    old = proto([conv(group=6)], {"w": REAL})
    old.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, REAL.shape))
    with pytest.raises(KeyFiltersError, match="also used by an output of net"):
        replace(old, folder)


def test_qlinearconv_and_sparse_weights_are_left(folder: Path) -> None:
    tensors = {"one": np.float32(1), "xz": np.int8(0), "q": INT8, **SCALED, "good": REAL}
    inputs = ["xq", "one", "xz", "q", "s", "z", "one", "xz"]
    quantised = helper.make_node("QLinearConv", inputs, ["t"], name="quantised", group=6)
    into = helper.make_node("QuantizeLinear", ["x", "one", "xz"], ["xq"])
    also = [conv("sparse", "x", "u", group=6), conv("good", group=6, name="good")]
    old = proto([into, quantised, *also], tensors)
    values, indices = tensor("sparse", np.ones(2, np.float32)), tensor("i", np.array([3, 9]))
    old.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 1, 3, 3]))
    new, report = replace(old, folder)
    assert "quantised, stored as INT8" in report["left"]["quantised"]
    assert "sparse initialiser" in report["left"]["dw"]
    assert changed(old, new) == {"good"}


def test_shared_weights_are_written_once(folder: Path) -> None:
    nodes = [
        conv(group=6, name="first", y="a"),
        node("Identity", "w", output="copy"),
        conv("copy", "a", "y", group=6, name="second"),
    ]
    old = proto(nodes, {"w": REAL})
    new, report = replace(old, folder)
    assert report["left"].to_dict() == {"first": "", "second": "shares its weights with first"}
    assert changed(old, new) == {"w"}
    assert on_keys(numpy_helper.to_array(new.graph.initializer[0])) < 1e-6


def test_an_optional_input_that_is_left_out_is_nobody_s_weight(folder: Path) -> None:
    model = proto([conv(group=6)], {"w": REAL})
    model.graph.node[0].input.append("")  # the bias
    new, report = replace(model, folder)
    assert report["left"].tolist() == [""] and changed(model, new) == {"w"}


def test_layers_of_one_name_are_told_apart(folder: Path) -> None:
    tensors = {"w": REAL, "v": weights(6, 1, 5, 5), "u": weights(6, 1, 7, 7)}
    nodes = [conv("w", "x", "a", group=6), conv("v", "a", "b", group=6), conv("u", "b", group=6)]
    nodes[2].name = ""
    old = proto(nodes, tensors)
    new, report = replace(old, folder)
    assert list(report.index) == ["dw", "dw (2)", "u"]
    assert changed(old, new) == {"w", "v", "u"}
    assert all(on_keys(numpy_helper.to_array(x)) < 1e-6 for x in new.graph.initializer)


# ------------------------------------------------------------------ subgraphs and functions


def test_branches_are_written_and_see_the_constants_around_them(folder: Path) -> None:
    pads = {"pads": [1, 1, 1, 1], "group": 6}
    inner = {"then_branch": REAL + 1, "else_branch": REAL + 2}
    branches = {
        branch: subgraph(
            [conv("w", "x", "t", name=branch, **pads), conv("outer", "t", "o", name="use", **pads)],
            {"w": value},
        )
        for branch, value in inner.items()
    }
    choice = helper.make_node("If", ["which"], ["y"], **branches)
    tensors = {"outer": REAL, "used": REAL}
    old = proto([choice, node("Mul", "used", "used", output="z")], tensors)
    old.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    old.graph.node[0].attribute[0].g.node[0].input[1] = "used"  # the Mul's too: not to be written
    new, report = replace(old, folder)
    first, second = (a.g.node[0].name for a in old.graph.node[0].attribute)
    assert "also used by Mul 'z'" in report["left"][first]
    assert report["left"][second] == "" == report["left"]["use"]
    assert report["left"]["use (2)"] == "shares its weights with use"
    assert changed(old, new) == {"outer", "w"}
    image = weights(1, 6, 5, 5)
    for which in (True, False):
        got, was = (run(m, x=image, which=np.array(which)) for m in (new, old))
        assert got.shape == was.shape and not np.allclose(got, was)


def test_local_functions_are_left_and_kept(folder: Path) -> None:
    inside = [
        helper.make_node("Conv", ["a", "b"], ["t"], name="inside", group=6),
        helper.make_node("Constant", [], ["k"], value=tensor("", REAL)),
        helper.make_node("Conv", ["t", "k"], ["c"], name="constant", group=6),
    ]
    imports = [helper.make_opsetid("", 21)]
    function = helper.make_function("local", "Block", ["a", "b"], ["c"], inside, imports)
    nodes = [
        conv("good", "x", "t", group=6, name="good"),
        helper.make_node("Block", ["t", "given"], ["u"], domain="local", name="block"),
        conv("both", "u", "v", group=6, name="both"),
        helper.make_node("Block", ["v", "both"], ["y"], domain="local", name="block 2"),
    ]
    tensors = {"good": REAL, "given": REAL + 1, "both": REAL + 2}
    old = proto(nodes, tensors, functions=[function])
    new, report = replace(old, folder)
    assert changed(old, new) == {"good"}
    assert "also used by Block 'block 2'" in report["left"]["both"]
    local = report["left"][report["left"].str.startswith("in a local function; inline it first")]
    assert set(local.index) | {"good", "both"} == {
        layer.name for layer in kf.read(folder / "net.onnx").layers
    }
    assert len(local) >= 2
    assert run(new, x=weights(1, 6, 20, 20)).shape == (1, 6, 8, 8)


# ------------------------------------------------------------------ external data


def external(folder: Path, location: str = "net.data") -> Any:
    """Write a model whose weights lie outside the file, and return it with them inside."""
    tensors = {"w": REAL, "v": weights(6, 1, 5, 5), "mix": weights(6, 6, 1, 1)}
    tensors["small"] = np.ones((6, 1, 1, 1), np.float32)
    nodes = [
        conv(group=6, name="one", y="a"),
        conv("mix", "a", "b", name="mix"),
        conv("v", "b", "c", group=6, name="two"),
        node("Mul", "c", "small", output="y"),
    ]
    model = proto(nodes, tensors)
    whole = onnx.ModelProto.FromString(model.SerializeToString())
    for x in model.graph.initializer[:3]:
        onnx.external_data_helper.set_external_data(x, location)
    folder.mkdir(exist_ok=True)
    onnx.save(model, str(folder / "net.onnx"))
    return whole


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_external_data_lies_beside_the_target(folder: Path, place: str) -> None:
    old = external(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    target = folder / place / "new.onnx"
    report = replace_in_file(folder / "net.onnx", target, KEYS)
    assert list(report["layer"]) == ["one", "two"] and not report["left"].any()
    assert all(p.read_bytes() == content for p, content in before.items())
    proto_ = onnx.load(target, load_external_data=False)
    where = {x.name: [e.value for e in x.external_data][:1] for x in proto_.graph.initializer}
    data = ["new.onnx.data"]
    assert where == {"w": data, "v": data, "mix": data, "small": []}
    new = onnx.load(target)
    assert changed(old, new) == {"w", "v"}
    image = weights(1, 6, 9, 9)
    assert np.array_equal(run(target, x=image), run(new, x=image))
    assert all(on_keys(layer.weight) < 1e-6 for layer in kf.read(target).layers)
    assert len(list(target.parent.iterdir())) == (2 if place else 4)


def test_a_source_with_external_data_is_overwritten_without_touching_its_data(
    folder: Path,
) -> None:
    old = external(folder, "net.onnx.data")
    data = (folder / "net.onnx.data").read_bytes()
    replace_in_file(folder / "net.onnx", folder / "net.onnx", KEYS, overwrite=True)
    assert (folder / "net.onnx.data").read_bytes() == data
    assert changed(old, onnx.load(folder / "net.onnx")) == {"w", "v"}
    assert (folder / "net.onnx-replaced.data").is_file()


def test_external_data_that_is_missing_short_or_elsewhere(folder: Path) -> None:
    external(folder / "a")
    target = folder / "new.onnx"
    data = folder / "a" / "net.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(SourceError, match="cannot be loaded"):
        replace_in_file(folder / "a" / "net.onnx", target, KEYS)
    data.rename(folder / "net.data")
    with pytest.raises(SourceError, match=r"lacks 'net\.data'; put it beside the model"):
        replace_in_file(folder / "a" / "net.onnx", target, KEYS)
    data.symlink_to(folder / "net.data")
    with pytest.raises(SourceError, match="its own folder"):
        replace_in_file(folder / "a" / "net.onnx", target, KEYS)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "net.data"]


def test_only_data_that_is_missing_for_other_tensors_is_refused_too(folder: Path) -> None:
    model = proto([conv(group=6), node("Add", "y", "b", output="z")], {"w": REAL, "b": REAL})
    (bias,) = (x for x in model.graph.initializer if x.name == "b")
    onnx.external_data_helper.set_external_data(bias, "../b.data")
    with pytest.raises(SourceError, match="its own folder"):
        replace(model, folder)


# ------------------------------------------------------------------ refusals, and a real file


def test_a_model_that_is_invalid_itself_is_written_with_a_warning(folder: Path) -> None:
    old = without_shape([conv(group=6)], {"w": REAL})
    with pytest.warns(UserWarning, match=r"net\.onnx itself fails ONNX's checker .*'shape'"):
        new, _ = replace(old, folder)
    assert changed(old, new) == {"w"}
    assert run(new, x=weights(1, 6, 9, 9)).shape == (1, 6, 7, 7)


def test_a_valid_model_never_becomes_an_invalid_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(proto: Any, *_: Any) -> None:
        proto.graph.node[0].op_type = "Nonsense"

    monkeypatch.setattr("keyfilters.surgery.onnx_files._gather_external_data_", break_)
    with pytest.raises(SourceError, match=r"nothing was written: .*Nonsense"):
        replace(proto([conv(group=6)], {"w": REAL}), folder)
    assert [p.name for p in folder.iterdir()] == ["net.onnx"]


def test_copies_in_a_circle_end(folder: Path) -> None:
    copies = [node("Identity", "w", output="u"), node("Identity", "u", output="w")]
    with pytest.warns(UserWarning, match="itself fails ONNX's checker"):
        _, report = replace(proto([*copies, conv(group=6)], {"w": REAL}), folder)
    assert report["left"].to_dict() == {"dw": ""}


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "net.onnx").write_bytes(proto([conv(group=6)], {"w": REAL}).SerializeToString())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"keyfilters\[onnx\]"):
        replace_in_file(folder / "net.onnx", folder / "new.onnx", KEYS)


def test_a_real_text_detector_runs_and_lies_on_the_keys(folder: Path) -> None:
    try:
        files = importlib.metadata.distribution("rapidocr").files or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rapidocr is not installed")
    source = Path(str(next(p for p in files if p.name == "PP-OCRv6_det_small.onnx").locate()))
    target = folder / "detector.onnx"
    report = replace_in_file(source, target, KEYS).set_index("layer")
    assert not report["left"].any()
    bank = kf.read(target)
    assert [layer.name for layer in bank.layers] == list(report.index)
    assert bank.sizes == kf.read(source).sizes
    assert all(on_keys(layer.weight) < 1e-5 for layer in bank.layers)
    old, new = onnx.load(source), onnx.load(target)
    assert len(changed(old, new)) == len(report)
    image = weights(1, 3, 64, 64)
    name = old.graph.input[0].name
    outputs = [run(path, **{name: image}) for path in (source, target)]
    assert outputs[0].shape == outputs[1].shape and np.isfinite(outputs[1]).all()
    assert not np.array_equal(*outputs)


def test_filters_of_one_dimension_are_written_in_their_shape(folder: Path) -> None:
    old = proto([conv(group=6)], {"w": weights(6, 1, 5)})
    (folder / "net.onnx").write_bytes(old.SerializeToString())
    [before] = kf.read(folder / "net.onnx").layers
    assert (before.ndim, before.size) == (1, (1, 5))
    (target,), save = open_onnx(folder / "net.onnx")
    target.write_(before.weight[::-1].copy())
    save(folder / "new.onnx", ["dw"])
    [after] = kf.read(folder / "new.onnx").layers
    np.testing.assert_array_equal(after.weight, before.weight[::-1])
    assert changed(old, onnx.load(folder / "new.onnx")) == {"w"}

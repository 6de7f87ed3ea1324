"""Files of onnxruntime: every attribute that weights may need, graphs in graphs, order, damage."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError

pytest.importorskip("flatbuffers")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from keyfilters.sources import ort_files  # noqa: E402
from keyfilters.sources.ort_files import read_ort  # noqa: E402
from tests.sources import encoders  # noqa: E402
from tests.sources.encoders import Table, flatbuffer  # noqa: E402
from tests.sources.tiny_models import FILTERS, OIHW  # noqa: E402

TYPES = {"float32": 1, "int8": 3, "int64": 7}
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = range(1, 9)


def tensor(name: str, value: Any) -> Table:
    data = np.frombuffer(value.tobytes(), np.uint8)
    kind = TYPES[value.dtype.name]
    return Table({0: name, 2: np.array(value.shape, np.int64), 3: ("i", kind), 4: data})


def bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def attribute(name: str, kind: int, value: Any) -> Table:
    slot = {FLOAT: 3, INT: 4, STRING: 5, TENSOR: 6, GRAPH: 7, FLOATS: 8, INTS: 9, STRINGS: 10}[kind]
    if kind in (FLOAT, INT):
        value = ("q", value) if kind == INT else ("i", bits(value))
    return Table({0: name, 2: ("i", kind), slot: value})


def operator(op: str, inputs: str, outputs: str, *attributes: Table, index: int = 0) -> Table:
    ends = {8: inputs.split(), 9: outputs.split(), 10: list(attributes)}
    return Table({0: outputs, 2: "", 4: ("i", index), 5: op, **ends})


def conv(weight: str = "w", output: str = "dw", x: str = "x", index: int = 0) -> Table:
    return operator("Conv", f"{x} {weight}", output, attribute("group", INT, 4), index=index)


def graph(nodes: list[Table], tensors: list[Table] | None = None, **fields: Any) -> Table:
    more = {int(key.removeprefix("field")): value for key, value in fields.items()}
    return Table({0: tensors or [], 2: nodes, 5: ["x"], **more})


def write(folder: Path, content: Table | None) -> Path:
    opsets = [Table({0: "", 1: ("q", 21)})]
    model = Table({1: opsets} if content is None else {1: opsets, 7: content})
    (folder / "net.ort").write_bytes(flatbuffer(Table({0: "1.20", 1: model}), b"ORTM"))
    return folder / "net.ort"


def filters(folder: Path, *content: Any, **fields: Any) -> dict[str, Any]:
    bank = kf.read(write(folder, graph(*content, **fields)))
    return {x.name: x.weight for x in bank.layers}


INT8 = np.random.default_rng(0).integers(-128, 128, OIHW.shape).astype(np.int8)
SHAPE = tensor("shape", np.array(OIHW.shape, np.int64))
MADE: dict[str, tuple[list[Table], list[Table], Any]] = {
    "tensor": (
        [operator("Constant", "", "w", attribute("value", TENSOR, tensor("", OIHW)))],
        [],
        OIHW,
    ),
    "float": (
        [operator("LeakyRelu", "v", "w", attribute("alpha", FLOAT, 0.25))],
        [tensor("v", OIHW)],
        np.where(OIHW < 0, OIHW * np.float32(0.25), OIHW),
    ),
    "int": ([operator("Cast", "v", "w", attribute("to", INT, 1))], [tensor("v", INT8)], INT8),
    "string": (
        [operator("Pad", "v pads", "w", attribute("mode", STRING, "reflect"))],
        [tensor("v", OIHW), tensor("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))],
        np.pad(OIHW, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"),
    ),
    "floats": (
        [
            operator("Constant", "", "v", attribute("value_floats", FLOATS, OIHW.ravel())),
            operator("Reshape", "v shape", "w", index=1),
        ],
        [SHAPE],
        OIHW,
    ),
    "ints": (
        [operator("Transpose", "v", "w", attribute("perm", INTS, np.array([1, 0, 3, 2])))],
        [tensor("v", np.ascontiguousarray(OIHW.transpose(1, 0, 3, 2)))],
        OIHW,
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_attributes_of_operators_that_make_a_weight(tmp_path: Path, kind: str) -> None:
    nodes, tensors, expected = MADE[kind]
    found = filters(tmp_path, [*nodes, conv(index=9)], tensors)
    np.testing.assert_array_equal(found["dw"], expected[:, 0].astype(np.float32))


def test_attributes_that_no_weight_needs(tmp_path: Path) -> None:
    fused = conv()
    fused[10].append(attribute("words", STRINGS, ["a", "b"]))
    np.testing.assert_array_equal(filters(tmp_path, [fused], [tensor("w", OIHW)])["dw"], FILTERS)


def test_branches_are_read(tmp_path: Path) -> None:
    branches = [
        attribute("then_branch", GRAPH, graph([conv("w", "then")])),
        attribute("else_branch", GRAPH, graph([conv("own", "else")], [tensor("own", OIHW * 2)])),
    ]
    choice = operator("If", "x", "y", *branches)
    found = filters(tmp_path, [choice], [tensor("w", OIHW)])
    np.testing.assert_array_equal(found["then"], FILTERS)
    np.testing.assert_array_equal(found["else"], FILTERS * 2)


def test_operators_come_in_an_order_in_which_they_run(tmp_path: Path) -> None:
    """Whatever order they are stored in: the last needs both others, the first is needed twice."""
    nodes = [
        operator("Concat", "a b", "c", attribute("axis", INT, 1), index=0),
        conv("w", "last", "c", index=1),
        conv("w1", "b", "a", index=2),
        conv("w2", "a", "x", index=3),
    ]
    tensors = [tensor(name, OIHW * k) for k, name in enumerate(("w", "w1", "w2"), 1)]
    assert list(filters(tmp_path, nodes, tensors)) == ["a", "b", "last"]


def test_sparse_weights_are_named(tmp_path: Path) -> None:
    values = tensor("w", np.ones(2, np.float32))
    sparse = Table({0: values, 1: tensor("", np.array([3, 9])), 2: np.array(OIHW.shape, np.int64)})
    nodes, tensors = [conv(), conv("v", "other")], [tensor("v", OIHW)]
    path = write(tmp_path, graph(nodes, tensors, field7=[sparse, Table()]))
    bank = read_ort(path, "net")
    assert [x.name for x in bank.layers] == ["other"]
    [(name, why)] = bank.skipped
    assert name == "net/dw" and "sparse" in why


def nested(levels: int) -> Table:
    inner = graph([conv()])
    for _ in range(levels):
        inner = graph([operator("If", "x", "y", attribute("then_branch", GRAPH, inner))])
    return graph(inner[2], [tensor("w", OIHW)])


def test_graphs_lie_in_each_other_up_to_a_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.testing.assert_array_equal(kf.read(write(tmp_path, nested(19))).layers[0].weight, FILTERS)
    with pytest.raises(SourceError, match="deep"):
        kf.read(write(tmp_path, nested(40)))
    monkeypatch.setattr(ort_files, "MOST", 5)
    with pytest.raises(SourceError, match="more than 5"):
        kf.read(write(tmp_path, nested(10)))


@pytest.mark.parametrize("part", ["constants", "attributes"])
@pytest.mark.parametrize("times", [3, 20])
def test_parts_that_are_used_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, times: int
) -> None:
    """Entries of a flatbuffer may all lead to one table, so that a small file means much."""
    known: dict[int, int] = {}
    written = encoders._table

    def once(builder: Any, table: Table) -> int:
        if id(table) not in known:
            known[id(table)] = written(builder, table)
        return known[id(table)]

    monkeypatch.setattr(encoders, "_table", once)
    large, kernel = np.zeros(2**15), tensor("w", OIHW)
    if part == "constants":
        again = [tensor("large", large.astype(np.float32))] * times * 2
        path = write(tmp_path, graph([conv()], [kernel, *again]))
    else:
        held = attribute("value", INTS, large.astype(np.int64))
        path = write(
            tmp_path, graph([operator("Constant", "", "v", *[held] * times), conv()], [kernel])
        )
    if times == 3:
        np.testing.assert_array_equal(kf.read(path).layers[0].weight, FILTERS)
    else:
        with pytest.raises(SourceError, match="again and again"):
            kf.read(path)


ELSEWHERE = Table({0: "w", 2: np.array(OIHW.shape, np.int64), 3: ("i", 1), 6: ("q", 64)})
DAMAGED: dict[str, tuple[Table | None, str]] = {
    "no graph": (None, "no graph"),
    "cycle": (graph([conv("w", "a", "b"), conv("w", "b", "a")], [tensor("w", OIHW)]), "each other"),
    "data elsewhere": (graph([conv()], [ELSEWHERE]), "does not name"),
    "no data": (graph([conv()], [Table({**ELSEWHERE, 6: ("q", -1)})]), "'w'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, case: str) -> None:
    content, what = DAMAGED[case]
    with pytest.raises(SourceError, match=what):
        kf.read(write(tmp_path, content))


def test_what_onnxruntime_itself_writes(tmp_path: Path) -> None:
    """Branches, attributes and sparse weights in its own file, against what was given to it."""
    runtime = pytest.importorskip("onnxruntime")

    def branch(weight: str, own: list[Any]) -> Any:
        node = helper.make_node("Conv", ["x", weight], [f"{weight}y"], name=weight, group=4)
        end = helper.make_tensor_value_info(f"{weight}y", TensorProto.FLOAT, None)
        return helper.make_graph([node], weight, [], [end], own)

    branches = {
        "then_branch": branch("w", []),
        "else_branch": branch("own", [numpy_helper.from_array(OIHW * 2, "own")]),
    }
    nodes = [
        helper.make_node("LeakyRelu", ["v"], ["w"], alpha=0.25),
        helper.make_node("If", ["t"], ["y"], name="choice", **branches),
        helper.make_node("Conv", ["y", "s"], ["z"], name="sparse", group=4),
    ]
    few = numpy_helper.from_array(np.ones(2, np.float32), "s")
    places = numpy_helper.from_array(np.array([3, 9]), "i")
    ends = {"x": (1, [1, 4, 9, 9]), "t": (9, []), "z": (1, None)}
    infos = [helper.make_tensor_value_info(name, *kind) for name, kind in ends.items()]
    held = [numpy_helper.from_array(OIHW, "v")]
    sparse = [helper.make_sparse_tensor(few, places, OIHW.shape)]
    made = helper.make_graph(nodes, "net", infos[:2], infos[2:], held, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "net.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    bank = read_ort(tmp_path / "net.ort", "net")
    found = {x.name: x.weight for x in bank.layers}
    np.testing.assert_array_equal(found["w"], np.where(FILTERS < 0, FILTERS / 4, FILTERS))
    np.testing.assert_array_equal(found["own"], FILTERS * 2)
    [(name, why)] = bank.skipped
    assert name == "net/sparse" and "sparse" in why

"""Exported programs of PyTorch (``.pt2``): weights in both layouts, geometry from the graph."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import keyfilters as kf
from tests.sources.pickle_writer import zipped
from tests.sources.test_torch_files import check
from tests.sources.tiny_models import STATE


def node(operator: str, *arguments: Any) -> dict[str, Any]:
    inputs = [{"name": name, "arg": {kind: value}} for name, kind, value in arguments]
    return {"target": f"torch.ops.aten.{operator}.default", "inputs": inputs, "outputs": []}


def program(weight: str = "p_dw_weight") -> dict[str, Any]:
    """Return a graph whose order is not that of the weights, as the schema of PyTorch has it."""
    names = {"p_pw_weight": "pw.weight", "p_dw_weight": "dw.weight"}
    specs: list[Any] = [
        {"parameter": {"arg": {"name": key}, "parameter_name": value}}
        for key, value in names.items()
    ]
    specs.append({"user_input": {"arg": {"as_tensor": {"name": "x"}}}})
    nodes = [
        node("relu", ("self", "as_tensor", {"name": "x"})),
        node(
            "conv2d",
            *(("input", "as_tensor", {"name": "x"}), ("weight", "as_tensor", {"name": weight})),
            *(("stride", "as_ints", [2, 1]), ("padding", "as_ints", [1, 0])),
            ("groups", "as_int", 4),
        ),
    ]
    return {"graph_module": {"graph": {"nodes": nodes}, "signature": {"input_specs": specs}}}


def before_2_8(folder: Path, graph: Any) -> Path:
    weights = io.BytesIO()
    torch.save(STATE, weights)
    with zipfile.ZipFile(folder / "a.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", json.dumps(graph))
        archive.writestr("serialized_state_dict.pt", weights.getvalue())
        archive.writestr("version", "5.3")
    return folder / "a.pt2"


def since_2_8(folder: Path, graph: Any, pickles: bool = False) -> Path:
    entries, files = {}, {}
    for i, (name, value) in enumerate(STATE.items()):
        meta: dict[str, Any] = {"dtype": 7, "storage_offset": {"as_int": 0}}
        for key, numbers in (("sizes", value.shape), ("strides", value.stride())):
            meta[key] = [{"as_int": x} for x in numbers]
        entries[name] = {"path_name": f"weight_{i}", "use_pickle": pickles, "tensor_meta": meta}
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=name == "dw.weight")
        files[f"weight_{i}"] = file.getvalue() if pickles else value.numpy().tobytes()
    members = {f"data/weights/{name}": x for name, x in files.items()}
    members["data/weights/model_weights_config.json"] = json.dumps({"config": entries}).encode()
    return zipped(folder / "a.pt2", members | {"models/model.json": json.dumps(graph).encode()})


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "before 2.8": before_2_8,
    "since 2.8": since_2_8,
    "pickled weights": lambda folder, graph: since_2_8(folder, graph, pickles=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_exported_programs_tell_their_geometry(tmp_path: Path, name: str) -> None:
    layer = check(WRITERS[name](tmp_path, program()))
    assert (layer.stride, layer.padding, layer.groups) == ((2, 1), (1, 0), 4)


@pytest.mark.parametrize("graph", [program("made_by_a_node"), {"graph_module": {}}, [], {}])
def test_weights_whose_graph_says_nothing_are_read_by_their_shape(
    tmp_path: Path, graph: Any
) -> None:
    for write in (before_2_8, since_2_8):
        layer = check(write(tmp_path, graph))
        assert layer.stride is None and "shape" in layer.note


def test_exported_weights_that_are_not_in_the_file(tmp_path: Path) -> None:
    path = since_2_8(tmp_path, program())
    with zipfile.ZipFile(path) as archive:
        members = {x: archive.read(x) for x in archive.namelist() if not x.endswith("weight_1")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(kf.KeyFiltersError, match="weight_1"):
        kf.read(path)

"""Every format: the same small network, the same filters, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.sources.formats import (
    FORMATS,
    READERS,
    format_table,
    markdown_table,
    recognise,
)
from keyfilters.surgery.files import OPENERS
from tests.sources.encoders import message
from tests.sources.tiny_models import FILTERS, NAMES_ONLY, NEEDS, SAME, TINY, conv_node, node

QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def tiny(name: str, folder: Path) -> Path:
    for library in NEEDS.get(name, []):
        pytest.importorskip(library)
    return TINY[name](folder)


@QUIET
@pytest.mark.parametrize("name", TINY)
def test_the_same_filters_in_every_format(tmp_path: Path, name: str) -> None:
    bank = kf.read(tiny(name, tmp_path))
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight.view(np.uint32), FILTERS.view(np.uint32))
    assert layer.ndim == 2 and layer.dilation in ((1, 1), None)
    if name in NAMES_ONLY:
        return
    assert layer.stride == (2, 2) and (layer.multiplier, layer.groups) == (1, 4)
    valid = name == "tflite"
    assert layer.padding == ((0, 0) if valid else "same" if name in SAME else (1, 1))
    assert any("pointwise" in why for _, why in bank.skipped) or name in (
        "tflite",
        "core_ml_package",
    )


@QUIET
@pytest.mark.parametrize("name", [x for x in TINY if x not in ("saved_model", "core_ml_package")])
def test_bytes_tell_the_format_and_not_the_name(tmp_path: Path, name: str) -> None:
    path = tiny(name, tmp_path)
    named_only = {"darknet", "mnn", "ncnn_binary"}  # no mark of their own
    for suffix in (".dat", ""):
        stem = path.name.partition(".")[0]
        other = path.with_name(stem + suffix) if name not in named_only else path
        if other != path:
            shutil.copy(path, other)
        found, expected = recognise(other), recognise(path)
        assert found is expected and found is not None


@QUIET
@pytest.mark.parametrize("name", TINY)
def test_a_folder_holds_one_model_and_no_broken_ones(tmp_path: Path, name: str) -> None:
    """Weights beside a graph belong to it: nothing is read twice or called damaged."""
    tiny(name, tmp_path)
    bank = kf.read(tmp_path)
    assert len(bank) == len(FILTERS)
    assert not [why for _, why in bank.skipped if "unreadable" in why]


@pytest.mark.parametrize("name", ["openvino", "ncnn", "paddle", "darknet"])
def test_the_file_of_weights_leads_to_its_graph(tmp_path: Path, name: str) -> None:
    path = tiny(name, tmp_path)
    [weights] = [x for x in tmp_path.iterdir() if x != path]
    if name != "paddle":
        assert len(kf.read(weights)) == len(FILTERS)
    weights.unlink()
    with pytest.raises(kf.KeyFiltersError, match="beside"):
        kf.read(path)


def test_every_reader_has_one_entry_and_the_table_shows_all() -> None:
    table = format_table()
    assert [row["format"] for row in table] == [x.name for x in FORMATS]
    assert len({x.name for x in FORMATS}) == len(FORMATS)
    assert {".onnx", ".h5", ".xml", ".pth.tar", ".mlmodel"} <= READERS.keys()
    written = {row["format"] for row in table if row["written"]}
    assert written == {
        *("PyTorch", "safetensors", "ONNX"),
        *("TensorFlow Lite", "Keras", "OpenVINO"),
    }
    assert all(x in OPENERS for f in FORMATS if f.written for x in f.suffixes[:1])
    assert all(bool(row["extra"]) == (row["library"] != "built in") for row in table)


def test_refused_formats_come_with_advice(tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(kf.KeyFiltersError, match="ONNX"):
        kf.read(tmp_path / "net.engine")
    pytest.importorskip("tflite")
    from tests.sources.tflite_builder import Model

    model = Model()
    ends = [model.tensor([1, 8, 8, 3]), model.tensor([1, 8])]
    model.operator("edgetpu-custom-op", ends[:1], ends[1:])
    (tmp_path / "net.tflite").write_bytes(model.write())
    with pytest.raises(kf.KeyFiltersError, match="Edge TPU"):
        kf.read(tmp_path / "net.tflite")


def test_a_set_of_weights_in_a_format_without_sets(tmp_path: Path) -> None:
    path = TINY["numpy_arrays"](tmp_path)
    with pytest.raises(kf.KeyFiltersError, match="#ema"):
        kf.read(f"{path}#ema")


def test_names_of_other_programs_make_no_format(tmp_path: Path) -> None:
    """A folder with the manifest of an app, and a graph that is cut short, beside a model."""
    TINY["checkpoint"](tmp_path)
    (tmp_path / "Manifest.json").write_text('{"name": "app"}')
    (tmp_path / "model.json").write_text('{"weightsManifest": [{"paths": ["a"], "weights": [')
    bank = kf.read(tmp_path)
    assert len(bank) == len(FILTERS)
    [(name, why)] = [x for x in bank.skipped if x[0].endswith(".json")]
    assert name == "model.json" and "unreadable" in why


def test_the_documentation_holds_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs" / "formats.md"
    assert markdown_table().replace("\n\n", "\n") in docs.read_text()


def test_text_of_a_file_never_breaks_a_message(tmp_path: Path) -> None:
    nodes = [node("w", "Const\nX", []), conv_node("dw", "DepthwiseConv2dNative", ["x", "w"], 1)]
    (tmp_path / "net.pb").write_bytes(message({1: nodes}))
    with pytest.raises(kf.KeyFiltersError, match="made by Const X") as error:
        kf.read(tmp_path / "net.pb")
    assert "\n" not in str(error.value)

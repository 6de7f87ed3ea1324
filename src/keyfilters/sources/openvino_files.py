"""Reading OpenVINO IR: the graph in ``.xml``, the constants in ``.bin``.

A weight is followed back through conversions and scales, as compressed models store it.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, XMLParser

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array, symmetric
from keyfilters.sources.content import beside, mapped

__all__ = ["LAYOUTS", "UNCHANGED", "Graph", "collect_openvino", "read_openvino"]

LAYOUTS = {
    "Convolution": "oi",
    "GroupConvolution": "goi",
    "ConvolutionBackpropData": "io",
    "GroupConvolutionBackpropData": "gio",
}
TYPES = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "bf16", "i8": "i1", "u8": "u1", "i16": "<i2",
    "u16": "<u2", "i32": "<i4", "u32": "<u4", "i64": "<i8", "u64": "<u8", "boolean": "u1",
    "FP32": "<f4", "FP16": "<f2", "I8": "i1", "U8": "u1",
}  # fmt: skip
BINARY = {"Multiply": np.multiply, "Subtract": np.subtract, "Add": np.add, "Divide": np.divide}
RESHAPING = ("Reshape", "Unsqueeze", "Squeeze")
UNCHANGED = ("Convert", "Transpose", *RESHAPING)  # behind these a weight keeps its numbers
DEEPEST = 30  # operators between what is stored and a weight
LARGEST_XML = 2**28


def read_openvino(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an OpenVINO model, by its ``.xml`` file.

    Raises:
        SourceError: the ``.bin`` file of the same name is not beside it.
        ValueError: one of the two is damaged.
    """
    collector = Collector(model)
    collect_openvino(path, mapped(constants_of(path)), collector)
    return collector.bank()


def constants_of(path: Path) -> Path:
    """Return the ``.bin`` file that belongs to an ``.xml`` file."""
    return beside(path, f"{path.name.removesuffix(path.suffix)}.bin")


def collect_openvino(path: Path, data: memoryview, collector: Collector) -> list[Graph]:
    """Offer the convolutions of an ``.xml`` file, and return its graphs, the outermost first.

    Kernels that are stored as floats are views of the data, which the ``.bin`` file holds.
    """
    return _read(collector, Graph(_parse(path), data), 0)


def _parse(path: Path) -> Element:
    large = path.stat().st_size > LARGEST_XML
    content = b"" if large else path.read_bytes()
    if large or b"<!DOCTYPE" in content:
        raise ValueError("it is too large, or declares a type of document")
    parser = XMLParser()
    try:
        parser.feed(content)
        net = parser.close()
    except ParseError as error:
        raise ValueError(f"its XML is damaged ({error})") from error
    if not isinstance(net, Element) or net.tag != "net":
        raise ValueError("it is no network")
    return net


class Graph:
    """The layers of a network, what leads to them, and the constants."""

    def __init__(self, net: Element, data: memoryview) -> None:
        self.net = net
        self.data = data
        self.layers = {x.get("id", ""): x for x in net.findall("layers/layer")}
        self.before = {
            (x.get("to-layer", ""), x.get("to-port", "")): x.get("from-layer", "")
            for x in net.findall("edges/edge")
        }

    def input(self, layer: Element, position: int) -> Element | None:
        """Return the layer that makes an input."""
        ports = layer.findall("input/port")
        if position >= len(ports):
            return None
        made = self.before.get((layer.get("id", ""), ports[position].get("id", "")), "")
        return self.layers.get(made)

    def source(self, layer: Element, position: int) -> int | None:
        """Return where the constant begins that an input is made from, None if there is none."""
        source = self.input(layer, position)
        for _ in range(DEEPEST):
            if source is None or source.get("type") in ("Const", None):
                break
            source = self.input(source, 0)
        data = None if source is None else source.find("data")
        place = None if data is None else data.get("offset")
        return None if place is None else int(place)

    def constant(self, layer: Element) -> Array:
        """Return the value of a constant in its own type."""
        held = layer.find("data")
        if held is None:
            raise ValueError("a constant without data")
        shape = _ints(held.get("shape", ""))
        start, size = int(held.get("offset", 0)), int(held.get("size", 0))
        if min(start, size, *shape, 0) < 0 or start + size > len(self.data):
            raise ValueError("a constant lies outside the .bin file")
        values = _numbers(self.data[start : start + size], held.get("element_type", ""))
        if values.size != prod(shape):
            raise ValueError(f"{values.size} values for a constant of shape {shape}")
        return values.reshape(shape)

    def value(self, layer: Element | None, left: list[int] | None = None) -> Array:
        """Return what constants, conversions and scales make, in float64 where they are scaled.

        Raises:
            SkipError: it depends on an input, or is not computed here.
        """
        left = [DEEPEST] if left is None else left
        left[0] -= 1
        if layer is None or left[0] < 0:
            raise SkipError("its weights are no constant")
        kind = layer.get("type", "")
        if kind == "Const":
            return self.constant(layer)

        def operand(position: int) -> Array:
            return self.value(self.input(layer, position), left)

        if kind == "Convert":
            return operand(0)
        if kind in BINARY:
            a, b = operand(0).astype(np.float64), operand(1).astype(np.float64)
            _broadcastable(a, b)
            with np.errstate(all="ignore"):
                return np.asarray(BINARY[kind](a, b))
        if kind in RESHAPING:
            source, last = operand(0), _port_shape(layer)
            if prod(last) != source.size:
                raise SkipError(f"its weights are made by {kind}, which is not evaluated")
            return source.reshape(last)
        if kind == "FakeQuantize":
            return _fake_quantize(layer, [operand(i) for i in range(5)])
        if kind == "Transpose":
            order = [int(x) for x in operand(1).ravel()]
            source = operand(0)
            if sorted(order) != list(range(source.ndim)):
                raise ValueError("a transposition that does not fit")
            return source.transpose(order)
        raise SkipError(f"its weights are made by {kind}, which is not evaluated")


def _read(collector: Collector, graph: Graph, level: int) -> list[Graph]:
    graphs = [graph]
    for layer in graph.layers.values():
        kind, name = layer.get("type", ""), layer.get("name", "")
        if kind in LAYOUTS:
            blob = layer.find("blobs/weights") if kind == "Convolution" else None
            try:
                if blob is not None:
                    _offer_old(collector, graph, layer, blob)
                else:
                    _offer(collector, graph, layer, name)
            except SkipError as error:
                collector.skip(name, str(error))
        elif "convolution" in kind.lower():
            collector.skip(name, f"operator {kind}, which is not read")
        for body in ("body", "then_body", "else_body"):
            inner = layer.find(body)
            if inner is not None and level < DEEPEST:
                graphs += _read(collector, Graph(inner, graph.data), level + 1)
    return graphs


def _offer(collector: Collector, graph: Graph, layer: Element, name: str) -> None:
    kind = layer.get("type", "")
    values = graph.value(graph.input(layer, 1))
    layout = LAYOUTS[kind]
    axes = values.ndim - len(layout)
    if not 1 <= axes <= 3:
        raise ValueError(f"{name} has weights of shape {values.shape}")
    shape = values.shape
    if layout == "gio":  # what is transposed is not taken; only its extents are told
        layout, shape = "io", (shape[0] * shape[1], *shape[2:])
    groups = values.shape[0] if kind.startswith("Group") else 1
    geometry = _geometry(layer, axes, groups, transposed="Backprop" in kind)
    _require_floats(values)
    layout += "zyx"[3 - axes :]
    place: Hashable = graph.source(layer, 1)
    if values.dtype == np.float64 and not np.may_share_memory(values, graph.data):
        values = values.astype(np.float32)  # as scales are computed
        place = (place, values.tobytes())  # what is stored once may be scaled in two ways
    collector.kernel(name, layout, shape, lambda: values, geometry, identity=place)


def _offer_old(collector: Collector, graph: Graph, layer: Element, blob: Element) -> None:
    """Offer a convolution of IR version 7 and before, whose weights are a blob of its own."""
    held, name = layer.find("data"), layer.get("name", "")
    told = {} if held is None else held.attrib
    kernel, out = _ints(told.get("kernel", "")), int(told.get("output", 0))
    start, size = int(blob.get("offset", 0)), int(blob.get("size", 0))
    if not kernel:  # versions 2 and 3: ``kernel-x`` and ``kernel-y``
        raise SkipError("the extents of its kernel are told in a form that is not read")
    if min(start, size, out) < 0 or start + size > len(graph.data) or not out * prod(kernel):
        raise ValueError(f"the weights of {name} lie outside the .bin file")
    kind = blob.get("precision", layer.get("precision", "FP32"))
    values = _numbers(graph.data[start : start + size], kind)
    _require_floats(values)
    each = values.size // (out * prod(kernel))
    geometry = _geometry(layer, len(kernel), int(told.get("group", 1)))
    layout = "oi" + "zyx"[3 - len(kernel) :]
    collector.kernel(name, layout, (out, each, *kernel), lambda: values, geometry, identity=start)


def _geometry(layer: Element, axes: int, groups: int, *, transposed: bool = False) -> Geometry:
    held = layer.find("data")
    told = {} if held is None else held.attrib

    def ints(name: str, default: int) -> tuple[int, ...]:
        return _ints(told.get(name, "")) or (default,) * axes

    automatic = told.get("auto_pad", "")
    padding: tuple[int, ...] | str | None
    if automatic.startswith("same"):
        padding = "same"
    elif automatic == "valid":  # whatever the pads are
        padding = (0,) * axes
    else:
        padding = symmetric([*ints("pads_begin", 0), *ints("pads_end", 0)])
    return Geometry(groups, transposed, ints("strides", 1), ints("dilations", 1), padding)


def _numbers(data: memoryview, name: str) -> Array:
    """Return the numbers in a buffer in their own type; bfloat16 as float32."""
    kind = TYPES.get(name)
    if kind is None:
        raise SkipError(f"its weights are of the type {name}, not read")
    return float_array(data, kind) if kind == "bf16" else np.frombuffer(data, kind)


def _require_floats(values: Array) -> None:
    if values.dtype.kind != "f":
        raise SkipError("its weights are integers without a scale")


def _fake_quantize(layer: Element, operands: list[Array]) -> Array:
    """Return ``round((x - low) / (high - low) · (levels - 1)) / (levels - 1)`` in the new range."""
    x, low, high, new_low, new_high = (y.astype(np.float64) for y in operands)
    for bound in (low, high, new_low, new_high):
        _broadcastable(x, bound)
    held = layer.find("data")
    levels = int(held.get("levels", 256)) if held is not None else 256
    with np.errstate(all="ignore"):
        step = np.round((x - low) / (high - low) * (levels - 1))
        made = step / (levels - 1) * (new_high - new_low) + new_low
    below, above = x <= np.minimum(low, high), x > np.maximum(low, high)
    return np.where(below, new_low, np.where(above, new_high, made))


def _broadcastable(a: Array, b: Array) -> None:
    shape = np.broadcast_shapes(a.shape, b.shape)
    if prod(shape) > max(a.size, b.size):
        raise SkipError("its weights are made by operands of two shapes")


def _port_shape(layer: Element) -> tuple[int, ...]:
    dims = [x.text or "" for x in layer.findall("output/port/dim")]
    return _ints(",".join(dims))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.replace(" ", "").split(",") if x)

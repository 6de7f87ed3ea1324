"""Reading ONNX files: depthwise convolutions in graph order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.depthwise import ConvShape
from keyfilters.errors import needing
from keyfilters.sources.collect import Collector, symmetric
from keyfilters.sources.onnx_constants import (
    Array,
    NotConstantError,
    Proto,
    Scope,
    attribute,
    damaged,
    evaluate,
    subgraphs,
)
from keyfilters.sources.onnx_functions import inlined

__all__ = ["read_onnx"]

# Convolutions with the position of the weight among their inputs; FusedConv is onnxruntime's.
WEIGHT = {
    "Conv": 1, "ConvTranspose": 1, "FusedConv": 1, "NhwcConv": 1, "NhwcFusedConv": 1,
    "ConvInteger": 1, "QLinearConv": 3,
}  # fmt: skip
DOMAINS = ("", "ai.onnx", "com.microsoft", "com.ms.internal.nhwc")
UNSCALED = "integers without their scale: shapes are right, norms mean nothing"


def read_onnx(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an ONNX file, in graph order.

    Subgraphs (branches of If, bodies of Loop and Scan) and local functions are read too, and
    quantised weights come out as the real numbers that they stand for.

    Args:
        path: the ``.onnx`` file; external data must lie in its folder.
        model: name of the model in the bank's tables.

    Returns:
        The bank, empty if there is no depthwise convolution; ``skipped`` names all others.

    Raises:
        MissingExtraError: the package onnx is not installed.
        SourceError: the file is damaged, or its external data is missing, damaged or elsewhere.
    """
    with needing("onnx", "reading .onnx files"):
        import onnx  # noqa: F401
    proto = _parse(path)
    collector = Collector(model)
    opsets = {"" if x.domain == "ai.onnx" else x.domain: x.version for x in proto.opset_import}
    try:
        _read_graph(Scope(proto.graph, path, opsets), collector)
    except (IndexError, UnicodeDecodeError) as error:
        raise damaged(
            path, f"has an operator that lacks its inputs or its name ({error})"
        ) from error
    for function in proto.functions:
        if any(node.op_type in WEIGHT for node in function.node):
            collector.skip(function.name, "function of another operator set than the model's")
    return collector.bank()


def _parse(path: Path) -> Proto:
    """Return the ModelProto with its local functions inlined and no external data loaded."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise damaged(path, f"cannot be parsed ({error})") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise damaged(path, "ends before its graph and its operator sets do")
    return inlined(proto, path)


def _read_graph(scope: Scope, collector: Collector) -> None:
    """Offer the convolutions of a graph and of its subgraphs, in order."""
    for index, node in enumerate(scope.graph.node):
        if "Conv" in node.op_type:
            position = WEIGHT.get(node.op_type, len(node.input))
            weight = node.input[position] if position < len(node.input) else ""
            name = node.name or weight or f"{node.op_type}_{index}"
            if node.op_type not in WEIGHT or node.domain not in DOMAINS:
                operator = f"{node.domain}.{node.op_type}".lstrip(".")
                collector.skip(name, f"operator {operator}, which is not read")
            else:
                try:
                    _offer(name, node, weight, scope, collector)
                except NotConstantError as error:
                    collector.skip(name, str(error))
        for graph in subgraphs(node):
            _read_graph(scope.inner(graph), collector)


def _offer(name: str, node: Proto, weight: str, scope: Scope, collector: Collector) -> None:
    """Offer one convolution.

    Its weights are ``(out, in / group, *kernel)``, transposed ``(in, out / group, *kernel)``.
    """
    shape, group = scope.shape(weight), attribute(node, "group", "i") or 1
    if len(shape) < 3 or min(shape) < 1 or group < 1 or shape[0] % group:
        raise damaged(scope.path, f"has weights {weight!r} of shape {shape} in {group} group(s)")
    transposed = node.op_type == "ConvTranspose"
    out_channels, in_channels = shape[0], shape[1] * group
    if transposed:
        out_channels, in_channels = in_channels, out_channels
    kernel = shape[2:]
    if node.op_type.startswith("Nhwc") and shape[-1] == 1 < shape[1]:  # channels last
        kernel, out_channels, in_channels = shape[1:-1], shape[0], group
    scale = _scale(node, scope)
    collector.offer(
        name,
        ConvShape(kernel, in_channels, out_channels, in_channels // group, transposed),
        lambda: _weights(node, weight, scale, scope),
        stride=tuple(attribute(node, "strides", "ints") or [1] * len(kernel)),
        dilation=tuple(attribute(node, "dilations", "ints") or [1] * len(kernel)),
        padding=_padding(node, len(kernel)),
        identity=scope.parameter(weight),
        note=UNSCALED if node.op_type == "ConvInteger" and scale is None else "",
    )


def _weights(node: Proto, weight: str, scale: str | None, scope: Scope) -> Array:
    """Return the weights as real numbers: float64 as it is, any other type exactly as float32."""
    from onnx import helper

    values = scope.array(weight)
    if node.op_type in ("ConvInteger", "QLinearConv"):
        feeds = {"integers": values, "scale": np.ones((), np.float32)}
        if scale is not None:
            feeds["scale"] = scope.array(scale).reshape(-1)
        if len(zero := node.input[WEIGHT[node.op_type] + 2 :]) and zero[0]:
            feeds["zero"] = scope.array(zero[0]).reshape(-1)
        dequantize = helper.make_node("DequantizeLinear", list(feeds), ["weights"], axis=0)
        values = evaluate(dequantize, feeds, {"": 21})[0]
    if values.shape != scope.shape(weight):
        raise NotConstantError(f"its weights are made in an unexpected shape {values.shape}")
    return values if values.dtype == np.float64 else values.astype(np.float32)


def _scale(node: Proto, scope: Scope) -> str | None:
    """Return the name of the scale of integer weights, None where there is none.

    Behind ConvInteger exporters put Cast and Mul by the product of two scales: the input's, which
    is computed, and the weights', which is a constant.
    """
    if node.op_type == "QLinearConv":
        return str(node.input[4])
    if node.op_type == "ConvInteger":
        for cast in scope.users(node.output[0], "Cast"):
            for mul in scope.users(cast.output[0], "Mul"):
                products = [scope.makers[x] for x in mul.input if x in scope.makers]
                scales = [x for p in products if p.op_type == "Mul" for x in p.input]
                constants = [x for x in scales if x in scope.tensors]
                return constants[0] if len(constants) == 1 else None
    return None


def _padding(node: Proto, axes: int) -> tuple[int, ...] | str | None:
    said = (attribute(node, "auto_pad", "s") or b"").decode("ascii", "replace")
    if said.startswith("SAME"):
        return "same"
    return symmetric(attribute(node, "pads", "ints") or [0] * 2 * axes)

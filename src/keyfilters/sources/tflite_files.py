"""Reading TensorFlow Lite files: depthwise convolutions in operator order.

The weights of DEPTHWISE_CONV_2D lie as ``(1, k_y, k_x, C)``, as real numbers, as float16 behind a
DEQUANTIZE operator, or as integers with scales and zero points.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.depthwise import ConvShape
from keyfilters.errors import SourceError, needing
from keyfilters.sources.collect import Collector
from keyfilters.sources.tflite_tables import File, Graph, SkipError, Table, text_of

__all__ = ["KINDS", "collect_tflite", "read_tflite"]


@dataclass(frozen=True)
class _Kind:
    """What one type of convolution looks like.

    Attributes:
        layout: the weight's axes: out, in (of a group), z, y, x, and one that is always 1.
        input: position of the image among the operator's inputs; the weight is number 1.
        options: class of its options, where they tell stride and dilation in two dimensions.
    """

    layout: str
    input: int = 0
    options: str = ""


KINDS = {
    "CONV_2D": _Kind("oyxi", options="Conv2DOptions"),
    "DEPTHWISE_CONV_2D": _Kind("1yxo", options="DepthwiseConv2DOptions"),
    "TRANSPOSE_CONV": _Kind("oyxi", input=2),
    "CONV_3D": _Kind("zyxio"),
    "CONV_3D_TRANSPOSE": _Kind("zyxoi", input=2),
}

# Python's flatbuffers verify nothing. A wrong offset leads out of the file (struct.error,
# ValueError), to a missing table (AttributeError), a negative position (TypeError), or a number
# that is too large for a list (LookupError) or for the machine (ArithmeticError).
BROKEN = (struct.error, ValueError, AttributeError, TypeError, LookupError, ArithmeticError)


def read_tflite(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a TensorFlow Lite file, in operator order.

    All subgraphs are read, and quantised weights come out as the real numbers that they stand for.

    Args:
        path: the ``.tflite`` file.
        model: name of the model in the bank's tables.

    Returns:
        The bank, empty if there is no depthwise convolution; ``skipped`` names all others.

    Raises:
        MissingExtraError: the package tflite is not installed.
        SourceError: the file is missing, truncated or damaged.
    """
    with needing("tflite", "reading .tflite files"):
        import tflite  # noqa: F401
    collector = Collector(model)
    try:
        collect_tflite(path.read_bytes(), collector)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path} cannot be opened as a .tflite file: {error}") from error
    except BROKEN as error:
        raise SourceError(
            f"{path} is not a readable TensorFlow Lite model: expected a whole flatbuffer marked "
            f"TFL3, but it is truncated or damaged ({error})"
        ) from error
    return collector.bank()


def collect_tflite(content: bytes | memoryview, collector: Collector) -> list[Graph]:
    """Offer the convolutions of a whole file, and return its subgraphs.

    Kernels that are stored as floats are views of the content. A damaged file raises any of BROKEN.
    """
    file = File(content)
    graphs = [Graph(file, graph) for graph in file.tables(file.model, "Subgraphs")]
    for graph in graphs:
        _read_graph(graph, collector)
    return graphs


def _read_graph(graph: Graph, collector: Collector) -> None:
    """Offer the convolutions of a subgraph, in order."""
    for operator in range(len(graph.operators)):
        kind = graph.type(operator)
        if kind == "edgetpu-custom-op":
            raise SourceError(
                f"{collector.model} is compiled for the Edge TPU, in whose form the weights are;"
                " give the .tflite file that it was compiled from"
            )
        if "CONV" not in kind.upper() or "CONVERT" in kind.upper():
            continue
        made = [graph.tensors[i] for i in graph.outputs[operator][:1]]
        name = "".join(text_of(tensor.Name()) for tensor in made) or f"{kind}_{operator}"
        try:
            if kind not in KINDS:
                raise SkipError(f"operator {kind}, which is not read")
            weight = graph.parameter(graph.input(operator, 1))
            name = text_of(graph.tensors[weight].Name()) or name
            _offer(name, operator, weight, graph, collector)
        except SkipError as error:
            collector.skip(name, str(error))


def _offer(name: str, operator: int, weight: int, graph: Graph, collector: Collector) -> None:
    kind = KINDS[graph.type(operator)]
    shape, image = graph.shapes[weight], graph.shapes[graph.input(operator, kind.input)]
    if len(shape) != len(kind.layout) or min(shape) < 1:
        raise ValueError(f"{graph.type(operator)} has weights of shape {shape}")
    extent = dict(zip(kind.layout, shape, strict=True))
    out_channels, channels_per_group = extent["o"], extent.get("i", 1)
    in_channels = image[-1] if image else None
    if in_channels is not None:
        groups, rest = divmod(in_channels, channels_per_group)
        if groups < 1 or rest or out_channels % groups:
            raise ValueError(f"weights of shape {shape} do not fit {in_channels} input channels")
    kernel = tuple(extent[axis] for axis in "zyx" if axis in extent)
    transposed = "TRANSPOSE" in graph.type(operator)
    stride, dilation, padding = _geometry(graph.operators[operator], kind)
    if blocks := _blocks(graph, graph.input(operator, kind.input)):
        dilation, padding = blocks, None
    collector.offer(
        name,
        ConvShape(kernel, in_channels, out_channels, channels_per_group, transposed),
        lambda: np.moveaxis(graph.values(weight), kind.layout.index("o"), 0),
        stride=stride,
        dilation=dilation,
        padding=padding,
        identity=graph.tensors[weight].Buffer(),
    )


def _blocks(graph: Graph, image: int) -> tuple[int, int] | None:
    """Return the dilation that converters write as SPACE_TO_BATCH_ND before the convolution."""
    maker = graph.makers.get(image)
    if maker is None or graph.type(maker) != "SPACE_TO_BATCH_ND":
        return None
    table = graph.tensors[graph.input(maker, 1)]
    block = np.frombuffer(graph.file.buffers[table.Buffer()], "<i4")
    return (int(block[0]), int(block[1])) if block.size == 2 else None


def _geometry(
    operator: Table, kind: _Kind
) -> tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | str | None]:
    """Return stride, dilation and padding as (y, x), None where the file does not tell."""
    import tflite

    union = operator.BuiltinOptions()
    expected = getattr(tflite.BuiltinOptions, kind.options) if kind.options else None
    if union is None or operator.BuiltinOptionsType() != expected:
        return None, None, None
    options = getattr(tflite, kind.options)()
    options.Init(union.Bytes, union.Pos)
    dilation = options.DilationHFactor(), options.DilationWFactor()
    return (
        (options.StrideH(), options.StrideW()),
        dilation,
        "same" if not options.Padding() else (0, 0),
    )

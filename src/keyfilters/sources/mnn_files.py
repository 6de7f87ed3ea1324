"""Reading MNN models: a flatbuffer of operators with their weights."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array, symmetric
from keyfilters.sources.content import mapped
from keyfilters.sources.flat import Table, root

__all__ = ["is_mnn", "read_mnn"]

# Types of operators, and whether they are transposed.
KINDS = {
    12: "Convolution",
    13: "ConvolutionDepthwise",
    17: "Deconvolution",
    18: "DeconvolutionDepthwise",
    513: "ConvInt8",
    515: "DepthwiseConvInt8",
}
CONVOLUTION_2D = 9  # of the union of parameters, from 1
MOST = 500_000
OTHERS = {55: "QuantizedDepthwiseConv2D", 96: "TfQuantizedConv2D", 113: "Convolution3D"}
ELSEWHERE = "its weights are kept in another file, which is not read"


def is_mnn(path: Path) -> bool:
    """Whether a file looks like an MNN network: it has no mark of its own."""
    try:
        net = root(mapped(path))
        operators = net.tables(3)
        return bool(operators) and net.size <= 64 and all(op.size <= 32 for op in operators[:8])
    except ValueError:
        return False


def read_mnn(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an ``.mnn`` file, in the order of its operators."""
    net = root(mapped(path))
    collector = Collector(model)
    for operator in _operators(net):
        kind, name = operator.number(5), operator.text(3)
        if kind in KINDS and operator.number(1, "<B") == CONVOLUTION_2D:
            _offer(collector, name, KINDS[kind], operator.table(2))
        elif kind in OTHERS:
            collector.skip(name, f"operator {OTHERS[kind]}, which is not read")
    return collector.bank()


def _operators(net: Table) -> Iterator[Table]:
    yield from net.tables(3)
    count = 0
    for graph in net.tables(10):
        operators = graph.tables(4)
        count += len(operators)
        if count > MOST:
            raise ValueError(f"more than {MOST} operators")
        yield from operators


def _offer(collector: Collector, name: str, kind: str, main: Table | None) -> None:
    """Offer a convolution, whose weights lie as ``(out, in / group, k_y, k_x)``."""
    if main is None or (common := main.table(0)) is None:
        raise ValueError(f"{name} has no geometry")
    out, channels = common.number(10), common.number(11)
    groups = common.number(9, default=1)
    kernel = common.number(3, default=1), common.number(2, default=1)
    depthwise = "epthwise" in kind
    transposed = kind.startswith("Deconv")
    if depthwise:
        groups = out if groups == 1 or not groups else groups
        each = 1
    else:
        groups = max(groups, 1)
        count = main.array(1, "<f4").size
        each = channels // groups if channels else count // max(out * prod(kernel), 1)
        if not each:
            collector.skip(name, "the number of its input channels is not told")
            return
    mode, pads = common.number(8, "<b"), common.numbers(14)
    padding = symmetric(pads * 2 if len(pads) == 2 else pads)  # two numbers are (y, x)
    padding = padding or (common.number(1), common.number(0))
    geometry = Geometry(
        transposed=transposed,
        stride=(common.number(5, default=1), common.number(4, default=1)),
        dilation=(common.number(7, default=1), common.number(6, default=1)),
        padding="same" if mode == 2 else (0, 0) if mode == 1 else padding,
    )
    if out % groups:
        raise ValueError(f"{name} has {out} filters in {groups} groups")
    shape = (groups, out // groups, each, *kernel)
    whole = not main.array(1, "<f4").size and main.table(3) is None and main.table(4) is not None
    note = "scaled by its input's and output's scales, too" if whole else ""
    load = partial(_weights, main, out, prod(shape))
    collector.kernel(name, "goiyx", shape, load, geometry, note=note)


def _weights(main: Table, out: int, count: int) -> Array:
    if (values := main.array(1, "<f4")).size:
        return values
    quantised, whole = main.table(3), main.table(4)
    if quantised is None:
        if whole is None or not (integers := whole.array(0, "i1")).size:
            raise SkipError(ELSEWHERE)
        return _scaled(integers, whole.array(2, "<f4"), out)
    kind, buffer = quantised.number(2), quantised.array(0, "u1")
    if kind == 2 or quantised.array(13, "<u4").size:
        raise SkipError("its weights are stored sparse, which is not read")
    if kind not in (1, 3, 4) or not buffer.size:
        raise SkipError(ELSEWHERE)
    if kind == 3:
        return float_array(buffer.tobytes(), "<f2")
    integers = buffer.view(np.int8) if kind == 4 else _unpacked(buffer, count)
    smallest, factor = quantised.number(8), quantised.float(4)
    oldest = kind == 4 and not smallest and abs(factor) < 1e-6
    factor = factor if factor and not oldest and not quantised.number(10, "<b") else 1.0
    two_sided = oldest or quantised.number(9) != 0
    least = min(smallest or -128, 0) if two_sided else None
    half = quantised.array(14, "<f2")
    alpha = half if half.size else quantised.array(1, "<f4")
    return _scaled(integers, alpha, out, least, factor)


def _scaled(
    integers: Array, alpha: Array, out: int, least: int | None = None, factor: float = 1.0
) -> Array:
    """Return ``scale * integer``; of (offset, scale) pairs the offset is the least integer's."""
    values = integers.reshape(out, -1).astype(np.float64)
    alpha = alpha.astype(np.float64) * factor
    if least is not None and alpha.size == 2 * out:
        pairs = alpha.reshape(out, 2)
        return ((values - least) * pairs[:, 1:] + pairs[:, :1]).astype(np.float32)
    if alpha.size != out:
        raise SkipError(
            f"its weights have {alpha.size} scales for {out} filters, which is not read"
        )
    return (values * alpha[:, None]).astype(np.float32)


def _unpacked(buffer: Array, count: int) -> Array:
    """Return the integers of a table of levels and of indices packed into bits."""
    data = buffer.tobytes()
    axes, at = data[0], 1 + 2 * data[0]
    if at >= len(data) or prod(struct.unpack_from(f"<{axes}H", data, 1)) != count:
        raise SkipError("its weights are packed in a way that is not read")
    levels = data[at] or 256
    table = np.sort(np.frombuffer(data, "i1", levels, at + 1))
    at += 1 + levels
    bits = max(int(np.ceil(np.log2(levels))), 1)
    packed = np.frombuffer(data, "u1", (count * bits + 7) // 8, at)
    flags = np.unpackbits(packed)[: count * bits].reshape(count, bits)
    index = flags @ (1 << np.arange(bits - 1, -1, -1))
    if index.max(initial=0) >= levels:
        raise ValueError("an index leads behind its table")
    return table[index]

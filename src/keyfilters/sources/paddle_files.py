"""Reading PaddlePaddle models: the program in ``.pdmodel``, the weights in ``.pdiparams``."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array, symmetric
from keyfilters.sources.content import beside, mapped
from keyfilters.sources.tensorflow_nodes import Stored
from keyfilters.sources.wire import Message

__all__ = ["read_paddle"]

KINDS = {
    "conv2d": False,
    "depthwise_conv2d": False,
    "conv2d_fusion": False,
    "fused_conv2d": False,
    "conv2d_transpose": True,
    "depthwise_conv2d_transpose": True,
    "conv3d": False,
    "conv3d_transpose": True,
}
TYPES = {
    2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1", 22: "bf16", 0: "u1",
    1: "<i2",
}  # fmt: skip
COPIES = ("assign", "cast", "share_data", "fake_quantize_dequantize_moving_average_abs_max")


def read_paddle(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a Paddle program (``.pdmodel``), in the order of operators.

    Raises:
        SourceError: the file of weights is not beside it.
    """
    program = Message(mapped(path))
    blocks = program.messages(1)
    collector = Collector(model)
    stored: dict[str, Stored] = {}
    for block in blocks:
        stored |= _weights(path, block) if not stored else {}
    for block in blocks:
        makers: dict[str, Any] = {}
        for operator in block.messages(4):
            kind = operator.text(3)
            inputs = {x.text(1): x.texts(2) for x in operator.messages(1)}
            for output in operator.messages(2):
                makers |= dict.fromkeys(output.texts(2), (kind, inputs))
            if kind in KINDS:
                _offer(collector, operator, kind, inputs, stored, makers)
            elif "conv" in kind and "grad" not in kind:
                collector.skip(kind, f"operator {kind}, which is not read")
    return collector.bank()


def _offer(
    collector: Collector,
    operator: Message,
    kind: str,
    inputs: dict[str, list[str]],
    stored: dict[str, Stored],
    makers: dict[str, Any],
) -> None:
    name = next(iter(inputs.get("Filter", [])), "")
    layer = name.removesuffix(".w_0") or kind
    for _ in range(20):
        if name in stored or name not in makers or makers[name][0] not in COPIES:
            break
        name = next(iter(makers[name][1].get("X", [])), "")
    weight = stored.get(name)
    if weight is None:
        maker = makers.get(name, ("nothing", {}))[0]
        collector.skip(layer, f"its weights are made by {maker}, which is not evaluated")
        return
    attributes = {x.text(1): x for x in operator.messages(4)}
    axes = 3 if "3d" in kind else 2

    def ints(key: str, missing: int) -> list[int]:
        return attributes[key].numbers(6) if key in attributes else [missing] * axes

    algorithm = attributes["padding_algorithm"].text(5) if "padding_algorithm" in attributes else ""
    pads = ints("paddings", 0)
    padding: tuple[int, ...] | None
    if len(pads) == 2 * axes:  # top, bottom, left, right
        pads = [*pads[::2], *pads[1::2]]
        padding = symmetric(pads)
    else:
        padding = tuple(pads)
    geometry = Geometry(
        groups=attributes["groups"].number(3, 1) if "groups" in attributes else 1,
        transposed=KINDS[kind],
        stride=tuple(ints("strides", 1)),
        dilation=tuple(ints("dilations", 1)),
        padding="same" if algorithm == "SAME" else (0,) * axes if algorithm == "VALID" else padding,
    )
    layout = ("io" if KINDS[kind] else "oi") + "zyx"[3 - axes :]
    collector.kernel(layer, layout, weight.shape, weight.load, geometry, identity=name)


def _weights(path: Path, block: Message) -> dict[str, Stored]:
    """Return the weights of a program: one file, sorted by name, or a file each."""
    names = sorted(
        {
            x.text(1)
            for x in block.messages(3)
            if x.number(3) and x.message(2).number(1) not in (9, 10, 17)
        }
        - {"feed", "fetch"}
    )
    if not names:
        return {}
    together = [path.with_suffix(".pdiparams").name, "__params__", "params"]
    here = [x for x in together if (path.parent / x).is_file()]
    if not here and not (path.parent / names[0]).is_file():
        raise SourceError(f"{path} lacks its weights; put {together[0]} beside it")
    found: dict[str, Stored] = {}
    data, at = mapped(beside(path, here[0])) if here else memoryview(b""), 0
    for name in names:
        if not here:
            data, at = mapped(beside(path, name)), 0
        found[name], at = _tensor(data, at, name)
    if here and at != len(data):
        raise ValueError(f"the program has {at} bytes of weights, the file {len(data)}")
    return found


def _tensor(data: memoryview, at: int, name: str) -> tuple[Stored, int]:
    """Return the tensor at a place, and the place behind it."""

    def take(size: int) -> memoryview:
        nonlocal at
        if size < 0 or size > len(data) - at:
            raise ValueError(f"the weights are cut short at {name!r}")
        at += size
        return data[at - size : at]

    take(4)
    for _ in range(struct.unpack("<Q", take(8))[0]):  # levels of detail
        take(struct.unpack("<Q", take(8))[0])
    take(4)
    described = Message(take(struct.unpack("<i", take(4))[0]))
    shape = tuple(described.numbers(2))
    kind = TYPES.get(described.number(1), "")
    if not kind or min(shape, default=1) < 0:
        raise ValueError(f"{name!r} has the type {described.number(1)} and shape {shape}")
    content = take(prod(shape) * _size(kind))

    def load() -> Array:
        values = float_array(content, kind).reshape(shape)
        if values.dtype.kind != "f":
            raise SkipError("its weights are integers without a scale")
        return values

    return Stored(name, shape, load, name), at


def _size(kind: str) -> int:
    return 2 if kind == "bf16" else int(kind[-1])

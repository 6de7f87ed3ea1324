"""Reading Caffe models (``.caffemodel``): layers with their weights in one protocol buffer."""

from __future__ import annotations

from pathlib import Path

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Geometry
from keyfilters.sources.content import mapped
from keyfilters.sources.wire import Message

__all__ = ["read_caffe"]

OLD_TYPES = {4: "Convolution", 39: "Deconvolution"}


def read_caffe(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a ``.caffemodel`` file, in the order of its layers."""
    net = Message(mapped(path))
    collector = Collector(model)
    for layer in net.messages(2):  # of 2014 and before
        kind = OLD_TYPES.get(layer.number(5), "")
        _offer(collector, layer.text(4), kind, layer.message(10), layer.messages(6))
    for layer in net.messages(100):
        _offer(collector, layer.text(1), layer.text(2), layer.message(106), layer.messages(7))
    return collector.bank()


def _offer(
    collector: Collector, name: str, kind: str, params: Message, blobs: list[Message]
) -> None:
    """Offer a convolution, ``(out, in / group, *kernel)``, transposed ``(in, out / group, …)``."""
    if "onvolution" not in kind:
        return
    if not blobs:
        collector.skip(name, "its weights are not in the file")
        return
    weights = blobs[0]
    shape = weights.message(7).numbers(1) or [weights.number(x, 1) for x in (1, 2, 3, 4)]
    transposed = "econv" in kind
    out = params.number(1)
    groups = params.number(5, 1)
    if len(shape) == 4 and shape[0] == 1 and shape[1] == out > 1 and not transposed:
        shape = [out, 1, *shape[2:]]
    if "epthwise" in kind:  # layers of their own, that need not say their groups
        groups = shape[0]
    taps = len(shape) - 2

    def load() -> Array:
        return weights.floats(5) if 5 in weights else weights.floats(8, "<f8")

    def pair(field: int, y: int, missing: int) -> tuple[int, ...] | None:
        numbers = params.numbers(field)
        if y in params or y + 1 in params:
            numbers = [params.number(y, missing), params.number(y + 1, missing)]
        numbers = numbers or [missing]
        return tuple(numbers * taps)[:taps] if len(numbers) in (1, taps) else None

    geometry = Geometry(groups, transposed, pair(6, 13, 1), pair(18, 1000, 1), pair(3, 9, 0))
    layout = "io" if transposed else "oi"
    collector.kernel(name, layout + "zyx"[3 - taps :], shape, load, geometry)

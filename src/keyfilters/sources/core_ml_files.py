"""Reading Core ML models: ``.mlmodel`` (layers or a program) and ``.mlpackage`` folders."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.collect import Array, Collector, Geometry, SkipError, float_array
from keyfilters.sources.content import load_json, mapped
from keyfilters.sources.core_ml_programs import offer_program
from keyfilters.sources.wire import Message

__all__ = ["read_core_ml"]

NETWORKS = (500, 403, 303)
PIPELINES = (202, 200, 201)
NESTED = ((605, 1), (605, 2), (615, 3), (615, 4))  # networks in a branch and in a loop


def read_core_ml(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a Core ML model, in the order of its layers."""
    if path.is_dir():
        path = _in_package(path)
    collector = Collector(model)
    _read(collector, Message(mapped(path)), path)
    return collector.bank()


def _in_package(folder: Path) -> Path:
    """Return the model of a package, which its manifest names."""
    manifest = load_json(folder / "Manifest.json")
    entries = manifest.get("itemInfoEntries", {})
    item = str(entries[manifest["rootModelIdentifier"]]["path"])
    file = folder / "Data" / item
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise SourceError(f"{folder} names the model {item!r}, which is not inside it")
    return file


def _read(collector: Collector, model: Message, path: Path) -> None:
    for field in PIPELINES:
        if field in model:
            pipeline = model.message(field)
            for inner in (pipeline if field == 202 else pipeline.message(1)).messages(1):
                _read(collector, inner, path)
    for field in NETWORKS:
        if field in model:
            for layer in model.message(field).messages(1):
                _read_layer(collector, layer)
    if 502 in model:
        offer_program(collector, model.message(502), path)


def _read_layer(collector: Collector, layer: Message) -> None:
    for kind, field in NESTED:
        for held in layer.message(kind).message(field).messages(1):
            _read_layer(collector, held)
    if 1471 in layer:
        collector.skip(layer.text(1), "3-D convolution")
    if 100 in layer:
        _offer(collector, layer.text(1), layer.message(100), len(layer.texts(2)))


def _offer(collector: Collector, name: str, conv: Message, inputs: int) -> None:
    """Offer a convolution, ``(out, in / group, *kernel)``, transposed ``(in, out / group, …)``."""
    out, each = conv.number(1), conv.number(2)
    groups = max(conv.number(10, 1), 1)
    kernel = (conv.numbers(20) or [3, 3])[-2:]
    transposed = bool(conv.number(60))
    if inputs > 1 or 90 not in conv:
        collector.skip(name, "its weights are no constant: they are an input")
        return
    same = 51 in conv
    edges = [(x.number(1), x.number(2)) for x in conv.message(50).message(1).messages(10)]
    sides = [*(x for x, _ in edges), *(x for _, x in edges)] or [0, 0, 0, 0]
    padding = tuple(sides[:2]) if sides[:2] == sides[2:] else tuple(sides)
    geometry = Geometry(
        groups,
        transposed,
        tuple(conv.numbers(30) or [1, 1]),
        tuple(conv.numbers(40) or [1, 1]),
        "same" if same else padding if len(padding) in (2, 4) else None,
    )
    shape = (each, out // groups, *kernel) if transposed else (out, each, *kernel)
    layout = "ioyx" if transposed else "oiyx"
    weights = conv.message(90)
    collector.kernel(name, layout, shape, lambda: _weights(weights, shape), geometry)


def _weights(weights: Message, shape: tuple[int, ...]) -> Array:
    """Return weights as real numbers: plain, of 16 bits, or integers with scales or a table."""
    if 1 in weights:
        return weights.floats(1)
    if len(half := weights.bytes(2)):
        return float_array(half, "<f2")
    quantised = weights.message(40)
    if 31 in weights:
        values: Array = np.frombuffer(weights.bytes(31), "i1").astype(np.float64)
        return (values * quantised.message(101).floats(1)).astype(np.float32)
    bits, count = quantised.number(1), prod(shape)
    raw = np.frombuffer(weights.bytes(30), "u1")
    if not 1 <= bits <= 8 or raw.size * 8 < count * bits:
        raise SkipError("its weights are stored in a way that is not read")
    flags = np.unpackbits(raw)[: count * bits].reshape(count, bits)
    index = flags @ (1 << np.arange(bits - 1, -1, -1))
    if 102 in quantised:
        table = quantised.message(102).floats(1)
        if index.max(initial=0) >= table.size:
            raise ValueError("an index leads behind its table")
        return table[index]
    linear = quantised.message(101)
    scale, bias = (linear.floats(x).astype(np.float64)[:, None] for x in (1, 2))
    if scale.size not in (1, shape[0]) or bias.size not in (0, 1, shape[0]):
        raise SkipError(f"its weights have {scale.size} scales for {shape[0]} filters")
    values = index.reshape(shape[0], -1) * scale + (bias if bias.size else 0.0)
    return values.astype(np.float32)

"""Reading TensorFlow.js models: graph models, layers models, and manifests of weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, Load, SkipError, float_array
from keyfilters.sources.content import beside, load_json, mapped
from keyfilters.sources.keras_layers import offer_layers, offer_rest
from keyfilters.sources.tensorflow_graphs import Functions, Graph, offer_graph
from keyfilters.sources.tensorflow_names import NamedTensor, offer_by_name
from keyfilters.sources.tensorflow_nodes import JsonNode, Stored

__all__ = ["read_tfjs"]

TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2"}


def read_tfjs(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a TensorFlow.js model, by its JSON file."""
    content = load_json(path)
    topology = content.get("modelTopology") if isinstance(content, Mapping) else None
    manifest = content["weightsManifest"] if isinstance(content, Mapping) else content
    tensors = {x.name: x for x in _weights(path, manifest)}
    collector = Collector(model)
    if isinstance(topology, Mapping) and "node" in topology:
        _offer_graph(collector, topology, tensors)
    elif isinstance(topology, Mapping):
        config = topology.get("model_config") or topology

        def held(names: tuple[str, ...], kind: str) -> list[NamedTensor]:
            starts = ("/".join(names), names[-1])
            return [x for x in tensors.values() if x.name.rpartition("/")[0] in starts]

        used = offer_layers(collector, config, held)
        offer_rest(collector, list(tensors.values()), used)
    else:
        offer_by_name(collector, tensors.values())
    return collector.bank()


def _offer_graph(
    collector: Collector, topology: Mapping[str, Any], tensors: Mapping[str, NamedTensor]
) -> None:
    functions: Functions = {
        str(x["signature"]["name"]): (
            [str(y["name"]) for y in x["signature"].get("inputArg") or []],
            [JsonNode(y) for y in x.get("nodeDef") or []],
        )
        for x in (topology.get("library") or {}).get("function") or []
    }

    def variable(name: str) -> Stored | None:
        tensor = tensors.get(name)
        return Stored(name, tensor.shape, tensor.load, name) if tensor else None

    graph = Graph([JsonNode(x) for x in topology["node"]], functions, variable)
    offer_graph(collector, graph)


def _weights(path: Path, manifest: Any) -> Iterator[NamedTensor]:
    """Yield the weights of a manifest: groups of tensors that follow each other in some files."""
    for group in manifest:
        parts = [mapped(beside(path, str(name))) for name in group["paths"]]
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        at = 0
        for entry in group["weights"]:
            shape = tuple(int(x) for x in entry["shape"])
            quantised = entry.get("quantization") or {}
            stored = str(quantised.get("dtype", entry["dtype"]))
            if min(shape, default=1) < 0:
                raise ValueError(f"a tensor of shape {shape}")
            if stored == "string":
                at += sum(_lengths(data[at:], prod(shape)))
                continue
            kind = "u1" if stored == "bool" else TYPES.get(stored, "")
            if stored == "complex64":
                kind = "<c8"
            if not kind:
                raise ValueError(f"a tensor of the type {stored!r}")
            size = prod(shape) * np.dtype(kind).itemsize
            if at + size > len(data):
                raise ValueError(f"the files of {entry['name']!r} are cut short")
            loader = _loader(data[at : at + size], kind, shape, quantised)
            yield NamedTensor(str(entry["name"]), shape, loader)
            at += size


def _lengths(data: memoryview, count: int) -> Iterator[int]:
    at = 0
    for _ in range(count):
        if at + 4 > len(data):
            raise ValueError("a tensor of texts is cut short")
        size = 4 + int.from_bytes(data[at : at + 4], "little")
        yield size
        at += size


def _loader(
    data: memoryview, kind: str, shape: tuple[int, ...], quantised: Mapping[str, Any]
) -> Load:
    def load() -> Array:
        values = float_array(data, kind).reshape(shape)
        if "scale" in quantised and kind != "<f2":
            scale, smallest = float(quantised["scale"]), float(quantised.get("min", 0))
            return (values.astype(np.float64) * scale + smallest).astype(np.float32)
        if values.dtype.kind != "f":
            raise SkipError("its weights are integers without a scale")
        return values

    return load

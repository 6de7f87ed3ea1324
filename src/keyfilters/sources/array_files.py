"""Reading arrays without a graph: NumPy (``.npz``, ``.npy``), Flax (msgpack) and Orbax."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.collect import Array, Collector, SkipError, float_array
from keyfilters.sources.content import load_json, mapped
from keyfilters.sources.statedicts import read_state_dict
from keyfilters.sources.tensorflow_names import NamedTensor, offer_by_name

__all__ = ["read_flax", "read_numpy", "read_orbax"]

LARGEST = 2**31
DEEPEST = 50


def read_numpy(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters among the arrays of an ``.npz`` or ``.npy`` file.

    Names of kernels in TensorFlow's or Flax's manner tell the layout ``(k_y, k_x, in, out)``, else
    it is PyTorch's ``(out, in, k_y, k_x)``.
    """
    with path.open("rb") as file:
        start = file.read(6)
    unread: list[tuple[str, str]] = []
    if start.startswith(b"\x93NUMPY"):
        tensors = {model: _load(np.memmap(path, np.uint8, "r").tobytes(), "array")}
    else:
        with zipfile.ZipFile(path) as archive:
            limit = 2**26 + 20 * path.stat().st_size
            tensors = {}
            for member in archive.infolist():
                with archive.open(member) as entry:
                    content = entry.read(min(limit, LARGEST) + 1)
                limit -= len(content)
                if limit < 0:
                    raise ValueError("the archive unpacks to far more than its own size")
                name = member.filename.removesuffix(".npy")
                try:
                    if (array := _load(content, name)) is not None:
                        tensors[name] = array
                except SkipError as error:
                    unread.append((f"{model}/{name}", str(error)))
    bank = _read(tensors, model)
    return FilterBank(bank.layers, [*bank.skipped, *unread])


def _load(content: bytes, name: str) -> Any:
    import io

    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = (
        np.lib.format.read_array_header_1_0(file)
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0(file)
    )
    shape, fortran, dtype = header
    if dtype.kind == "V" and len(shape) > 2:
        raise SkipError(
            f"an array of type {dtype.str}, which NumPy does not know; save it as float32"
        )
    if dtype.kind not in "fiu":
        return None
    if prod(shape) * dtype.itemsize > len(content) - file.tell() or min(shape, default=0) < 0:
        raise ValueError(f"{name} is cut short: expected an array of shape {shape}")
    values = np.frombuffer(content, dtype, prod(shape), file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def _read(tensors: Mapping[str, Any], model: str) -> FilterBank:
    """Read named arrays in the layout that their names and shapes speak for."""
    kernels = [x for x in tensors.values() if x.ndim == 4]
    torch_like = sum(x.shape[1] == 1 < x.shape[0] and x.shape[2] > 1 for x in kernels)
    named = any(x.endswith(("kernel", "kernel:0")) or "depthwise" in x for x in tensors)
    dotted = any(x.endswith(".weight") for x in tensors)  # PyTorch's names, and no one else's
    if dotted or (torch_like and not named):
        native = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in tensors.items()}
        return read_state_dict(native, model)
    collector = Collector(model)
    offer_by_name(
        collector, [NamedTensor(k, v.shape, partial(_floats, v)) for k, v in tensors.items()]
    )
    return collector.bank()


def _floats(array: Array) -> Array:
    if array.dtype.kind != "f":
        raise SkipError(f"{array.dtype} weights without scales")
    return array


def read_flax(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a file that Flax serialised (``.msgpack``)."""
    import msgpack

    def extension(code: int, data: bytes) -> Any:
        if code != 1:  # complex numbers and scalars are no kernels
            return None
        shape, kind, content = msgpack.unpackb(data, raw=False)
        kind = kind if isinstance(kind, str) else kind.decode()
        name = "bf16" if kind == "bfloat16" else np.dtype(kind).str
        values = float_array(content, name)
        if prod(shape) != values.size:
            raise ValueError(f"an array of shape {tuple(shape)} with {values.size} values")
        return values.reshape(shape)

    content = msgpack.unpackb(
        mapped(path), ext_hook=extension, raw=False, strict_map_key=False, use_list=True
    )
    collector = Collector(model)
    tensors = list(_flat(content, "", 0))
    names = [tensor.name.split("/") for tensor in tensors]
    offer_by_name(collector, tensors, in_model_order=names != sorted(names))  # JAX sorts mappings
    return collector.bank()


def _flat(node: Any, name: str, level: int) -> Iterator[NamedTensor]:
    """Yield the arrays of nested mappings under their paths; optimisers' states are left out."""
    if level > DEEPEST:
        raise ValueError("mappings lie in each other too deep")
    if isinstance(node, Mapping) and node.get("__msgpack_chunked_array__"):
        node = _joined(node)
    if isinstance(node, np.ndarray):
        yield NamedTensor(name, node.shape, lambda: node)
    elif isinstance(node, (Mapping, list)):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from _flat(value, f"{name}/{key}".lstrip("/"), level + 1)


def _joined(node: Mapping[str, Any]) -> Array:
    """Return an array that Flax cut into parts."""
    shape = [node["shape"][str(i)] for i in range(len(node["shape"]))]
    parts = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    return np.concatenate([x.ravel() for x in parts]).reshape(shape)


def read_orbax(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an Orbax checkpoint: a folder that TensorStore reads."""
    import tensorstore

    folder = path / "default" if (path / "default").is_dir() else path
    metadata = folder / "_METADATA"
    if not metadata.is_file():
        raise SourceError(f"{path} is no Orbax checkpoint of arrays: it lacks _METADATA")
    content = load_json(metadata)
    names = []
    for entry in content["tree_metadata"].values():
        keys = [str(x["key"]) for x in entry["key_metadata"]]
        if entry["value_metadata"].get("value_type") not in (None, "None", "string", "scalar"):
            names.append(keys)
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    together = (folder / "manifest.ocdbt").is_file()
    driver = "zarr3" if content.get("use_zarr3") else "zarr"

    def opened(keys: list[str]) -> Any:
        name = ".".join(keys)
        if any(x in ("", "..") or "/" in x for x in keys):
            raise SourceError(f"{path} was refused: it names {name!r}, outside its own folder")
        store = (
            {"driver": "ocdbt", "base": base, "path": f"{name}/"}
            if together
            else {"driver": "file", "path": f"{folder.resolve()}/{name}/"}
        )
        return tensorstore.open({"driver": driver, "kvstore": store}, read=True).result()

    collector = Collector(model)
    in_model_order = names != sorted(names)
    offer_by_name(collector, _stored(names, opened), in_model_order=in_model_order)
    return collector.bank()


def _stored(names: list[list[str]], opened: Any) -> Iterator[NamedTensor]:
    for keys in names:
        store = opened(keys)
        shape = tuple(store.shape)

        def load(store: Any = store) -> Array:
            values = np.asarray(store.read().result())
            return values if values.dtype.kind == "f" else values.astype(np.float32)

        yield NamedTensor("/".join(keys), shape, load)

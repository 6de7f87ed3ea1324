"""Programs of `torch.export` (``.pt2``): weights, and the geometry that the graph tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keyfilters.sources.collect import Geometry
from keyfilters.sources.torch_tensors import Storage, StoredTensor
from keyfilters.sources.weight_sets import WeightSet

if TYPE_CHECKING:
    from keyfilters.sources.torch_files import Zip

__all__ = ["load_export"]

# PyTorch's numbers of types in its schema.
DTYPES = {
    1: "Byte", 2: "Char", 3: "Short", 4: "Int", 5: "Long", 6: "Half", 7: "Float", 8: "Double",
    9: "ComplexHalf", 10: "ComplexFloat", 11: "ComplexDouble", 12: "Bool", 13: "BFloat16",
}  # fmt: skip
ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def load_export(archive: Zip, configs: list[str], nested: list[str]) -> Any:
    """Return the weights of an exported program, with their geometry where its graph tells.

    Args:
        archive: the zip archive.
        configs: its lists of weights, of PyTorch 2.8 and later.
        nested: its files of weights before that, each a file of PyTorch.
    """
    tensors: dict[str, Any] = {}
    for name in nested:
        found = archive.nested(name)
        tensors |= found if isinstance(found, dict) else {}
    for name in configs:
        folder = name.rpartition("/")[0]
        for key, entry in archive.json(name)["config"].items():
            if entry.get("use_pickle"):
                tensors[key] = archive.nested(f"{folder}/{entry['path_name']}")
            else:
                tensors[key] = _tensor(archive, f"{folder}/{entry['path_name']}", entry)
    geometry: dict[str, Geometry] = {}
    for name in archive.members:
        if name.endswith(("models/model.json", "serialized_exported_program.json")):
            try:
                geometry |= _geometry(archive.json(name))
            except (LookupError, TypeError, AttributeError):
                continue
    order = {layer: i for i, layer in enumerate(geometry)}
    last = len(order)
    names = sorted(tensors, key=lambda x: order.get(x.rpartition(".")[0], last))
    return WeightSet("", {x: tensors[x] for x in names}, geometry, whole=True)


def _tensor(archive: Zip, member: str, entry: Mapping[str, Any]) -> StoredTensor:
    meta = entry["tensor_meta"]
    shape, stride = (tuple(int(x["as_int"]) for x in meta[y]) for y in ("sizes", "strides"))
    kind = f"torch.{DTYPES.get(meta['dtype'], 'Byte')}Storage"
    if member not in archive.members:
        raise ValueError(f"the weights {member!r} are not in the file")
    return StoredTensor(
        Storage(kind, lambda: archive.bytes(member)),
        int(meta["storage_offset"]["as_int"]),
        shape,
        stride,
    )


def _geometry(program: Mapping[str, Any]) -> dict[str, Geometry]:
    module = program["graph_module"]
    weights = {}
    for spec in module["signature"]["input_specs"]:
        for held in spec.values():
            key = held.get("parameter_name") or held.get("buffer_name")
            if key:
                weights[held["arg"]["name"]] = str(key)
    found: dict[str, Geometry] = {}
    for node in module["graph"]["nodes"]:
        operator = str(node["target"]).removeprefix("torch.ops.aten.").partition(".")[0]
        if "conv" not in operator:
            continue
        held = {}
        for place, given in enumerate(node["inputs"]):
            name = given.get("name") or ORDER[min(place, len(ORDER) - 1)]
            value = next(iter(given["arg"].values()))
            held[name] = value
        weight = held.get("weight")
        key = weights.get(weight["name"], "") if isinstance(weight, Mapping) else ""
        if key.endswith("weight"):
            padding = held.get("padding")
            found[key.removesuffix(".weight").removesuffix("weight")] = Geometry(
                int(held.get("groups", 1)),
                "transpose" in operator or bool(held.get("transposed")),
                _ints(held.get("stride")),
                _ints(held.get("dilation")),
                padding if isinstance(padding, str) else _ints(padding),
            )
    return found


def _ints(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(isinstance(x, int) for x in value):
        return tuple(value)
    return (value,) if isinstance(value, int) else None

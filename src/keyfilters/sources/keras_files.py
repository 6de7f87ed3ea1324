"""Reading Keras files: ``.h5``, ``.weights.h5`` and ``.keras``, without TensorFlow."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Array, Collector, SkipError
from keyfilters.sources.keras_layers import layers_of, offer_layers, offer_rest
from keyfilters.sources.tensorflow_names import NamedTensor, offer_by_name

__all__ = ["CONFIG", "WEIGHTS", "collect_keras", "load_dataset", "read_keras", "read_member"]

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a .keras archive

MOST = 20_000  # objects in one file
LARGEST = 2**28  # bytes of one kernel
LARGEST_CHUNK = 2**20
LARGEST_PART = 2**31
DEEPEST = 60


def read_keras(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a Keras file, in the order of its layers.

    Without a configuration of the layers the names of the weights tell, as a note then says.
    """
    import pyfive

    collector = Collector(model)
    with path.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(read_member(archive, CONFIG))
            weights = io.BytesIO(read_member(archive, WEIGHTS))
        with pyfive.File(weights) as file:
            collect_keras(file, collector, config=config)
    else:
        with pyfive.File(str(path)) as file:
            collect_keras(file, collector)
    return collector.bank()


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive.

    Raises:
        ValueError: it unpacks to far more than the archive.
    """
    limit = min(LARGEST_PART, 2**26 + 20 * sum(x.compress_size for x in archive.infolist()))
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} unpacks to more than {limit} bytes")
    return content


def _config(file: Any) -> Any:
    text = file.attrs.get("model_config")
    return None if text is None else json.loads(_text(text))


def _text(value: Any) -> str:
    """Return an attribute as text, which may be stored as bytes or as an array of one text."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _own_name(file: Any, place: str) -> str:
    """Return the name of a layer that its group of variables notes; empty where it does not."""
    try:
        name = file[place].attrs.get("name")
    except KeyError:
        return ""
    return "" if name is None else _text(name)


def load_dataset(dataset: Any) -> Array:
    """Return the numbers in a dataset, in its own type.

    Raises:
        SkipError: it is too large.
    """
    if dataset.size * dataset.dtype.itemsize > LARGEST:
        raise SkipError(f"a kernel of {dataset.size} values, which is not read")
    if dataset.chunks is not None:
        stored = dataset.id
        sizes = [stored.get_chunk_info(i).size for i in range(stored.get_num_chunks())]
        if max(sizes, default=0) > LARGEST_CHUNK:
            raise SkipError("its weights are compressed in parts above 1 MB, which is not read")
    return np.asarray(dataset[()])


def collect_keras(
    file: Any,
    collector: Collector,
    *,
    config: Any = None,
    load: Callable[[Any], Array] = load_dataset,
) -> None:
    """Offer the convolutions of a file.

    Args:
        file: the ``pyfive.File`` with the weights.
        collector: takes the convolutions.
        config: of the model, where the file itself does not hold it.
        load: returns the numbers in a dataset.
    """
    if file.userblock_size:  # pyfive looks for the numbers in the wrong place
        raise ValueError("an HDF5 file with a user block, which is not read")
    config = _config(file) if config is None else config
    tensors = list(_tensors(file, load))
    if config is None:
        ordered = _in_kept_order(file, tensors)
        named = list(_named(file, ordered or tensors))
        offer_by_name(collector, named, in_model_order=bool(ordered))
        return
    legacy = "model_weights" in file or "layer_names" in file.attrs
    held = _by_layer(tensors) if legacy else _by_variables(file, tensors, config)

    def weights(names: tuple[str, ...], kind: str) -> list[NamedTensor]:
        for i in range(len(names)):
            if found := held.get(tuple("/".join(names[i:]).split("/"))):
                return found
        return []

    used = offer_layers(collector, config, weights)
    offer_rest(collector, tensors, used)


def _tensors(file: Any, load: Callable[[Any], Array]) -> Iterator[NamedTensor]:
    """Yield the datasets of a file in order.

    Written in Python alone, pyfive follows no link out of a file; HDF5's own library runs for ever
    on some damaged files.
    """
    import pyfive

    stack: list[tuple[str, Any]] = [("", file)]
    for _ in range(MOST):
        if not stack:
            return
        name, item = stack.pop()
        if isinstance(item, pyfive.Dataset):
            if getattr(item.dtype, "kind", "") in ("f", "i", "u") and item.shape is not None:
                yield NamedTensor(name, tuple(item.shape), partial(load, item))
        elif isinstance(item, pyfive.Group):
            if name.count("/") > DEEPEST:
                raise ValueError("groups lie in each other too deep")
            children = [(f"{name}/{key}".lstrip("/"), item.get_lazy_view(key)) for key in item]
            stack += reversed(children)
    raise ValueError(f"more than {MOST} objects")


def _by_layer(tensors: list[NamedTensor]) -> dict[tuple[str, ...], list[NamedTensor]]:
    """Group the tensors of the older layout: ``model_weights/LAYER/LAYER/kernel:0``."""
    held: dict[tuple[str, ...], list[NamedTensor]] = {}
    for tensor in tensors:
        parts = tensor.name.removeprefix("model_weights/").split("/")
        for i in range(1, len(parts)):
            for start in (0, i - 1):
                key = tuple(parts[start:i])
                if tensor not in held.setdefault(key, []):
                    held[key].append(tensor)
    return held


def _by_variables(
    file: Any, tensors: list[NamedTensor], config: Any
) -> dict[tuple[str, ...], list[NamedTensor]]:
    """Group the tensors of Keras 3, ``layers/GROUP/vars/0``, by the names of their layers.

    A group notes the layer's own name; where it does not, it is called after the layer's class in
    snake case and a number, counted model by model.
    """
    groups: dict[str, list[NamedTensor]] = {}
    for tensor in tensors:
        group, _, number = tensor.name.rpartition("/vars/")
        if number.isdigit():
            groups.setdefault(group, []).append(tensor)
    held: dict[tuple[str, ...], list[NamedTensor]] = {}
    for group, found in groups.items():
        names: list[str] = []
        parts = group.split("/")
        for i in range(1, len(parts) + 1):
            name = _own_name(file, "/".join([*parts[:i], "vars"]))
            names += [name] if name else []
        held.setdefault(tuple(names), []).extend(found)
    return held if any(held) else _by_class(groups, config)


def _by_class(
    groups: dict[str, list[NamedTensor]], config: Any
) -> dict[tuple[str, ...], list[NamedTensor]]:
    held: dict[tuple[str, ...], list[NamedTensor]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, ...], str] = {(): ""}
    wrappers: set[tuple[str, ...]] = set()
    for path, kind, own in layers_of(config):
        snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
        parent = places.get(path[:-1], "")
        number = counts[parent, snake]
        counts[parent, snake] += 1
        inside = f"{parent}/layers" if parent else "layers"
        places[path] = f"{inside}/{snake}_{number}" if number else f"{inside}/{snake}"
        if path[:-1] in wrappers:
            places[path] = f"{parent}/layer"
        if isinstance(own.get("layer"), Mapping):  # TimeDistributed and like
            wrappers.add(path)
        if found := groups.get(places[path]):
            held[path] = found
    return held


def _in_kept_order(file: Any, tensors: list[NamedTensor]) -> list[NamedTensor]:
    """Return the tensors in the order of the lists of names that older files keep, if they do."""
    rank: dict[str, int] = {}
    for layer in map(_text, np.ravel(file.attrs.get("layer_names", ()))):
        inside = [x.name for x in tensors if x.name.startswith(f"{layer}/")]
        kept = file[layer].attrs.get("weight_names", ()) if inside else ()
        for name in (*(f"{layer}/{_text(x)}" for x in np.ravel(kept)), *inside):
            rank.setdefault(name, len(rank))
    return sorted(tensors, key=lambda x: rank.get(x.name, len(rank))) if rank else []


def _named(file: Any, tensors: list[NamedTensor]) -> Iterator[NamedTensor]:
    """Yield the tensors under names that tell a kernel, where the file has no configuration."""
    for tensor in tensors:
        group, inside, number = tensor.name.rpartition("/vars/")
        if not inside:
            yield tensor
        elif number == "0" and not group.startswith("optimizer"):
            kind = group.rpartition("/")[2]
            name = _own_name(file, f"{group}/vars") or group.removeprefix("layers/")
            depthwise = kind.startswith(("depthwise", "separable"))
            if "transpose" not in kind:
                ending = "depthwise_kernel" if depthwise else "kernel"
                yield tensor._replace(name=f"{name}/{ending}")

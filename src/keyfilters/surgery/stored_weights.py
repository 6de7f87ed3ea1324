"""The depthwise filters of TFLite, Keras and OpenVINO files, written where they lie in the file.

The reader of the format runs on a copy of the file in memory. Kernels that are stored as floats are
views of that copy: what is written to them lies at its place in the file, and no other byte
changes. Kernels that are no views are quantised or computed, and are left alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds

from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.sources.collect import Array, SkipError
from keyfilters.sources.formats import recognise, suffix_format
from keyfilters.sources.openvino_files import (
    LAYOUTS,
    UNCHANGED,
    Graph,
    collect_openvino,
    constants_of,
)
from keyfilters.sources.paths import read_path
from keyfilters.sources.tflite_files import KINDS, collect_tflite
from keyfilters.sources.tflite_tables import COPIES, text_of
from keyfilters.sources.tflite_tables import Graph as LiteGraph
from keyfilters.surgery.finder import Finder, Found, Opened
from keyfilters.surgery.keras_weights import KerasFile

__all__ = ["open_stored"]

COMPUTED = (
    "its weights are quantised or computed, not stored as floats of 16, 32 or 64 bits; replace the "
    "filters of the model that it was converted from"
)
T = TypeVar("T")
Extents = Iterable[tuple[Hashable, int, int]]
Users = Mapping[Hashable, str]


@dataclass
class _Stored:
    """The kernels of a file, and what else it keeps in the same bytes.

    Attributes:
        finder: the convolutions.
        memory: what holds kernels that can be written: the file, or what is packed in it.
        extents: the identity of each constant, and the addresses where it begins and ends.
        users: what takes a constant otherwise than as the weights of a convolution, by identity.
        save: writes the file from the memory.
    """

    finder: Finder
    memory: list[Array]
    save: Callable[[Path], None]
    extents: Extents = ()
    users: Users = field(default_factory=dict)


def open_stored(path: Path) -> Opened:
    """Find the depthwise filters of a TFLite, Keras or OpenVINO file that can be written back.

    They are named as `kf.read` names them; a second layer of one name is called ``"NAME (2)"``.
    Weights may be stored as float16, float32 or float64, also behind operators that only convert or
    reshape. Weights that are quantised, computed, or used by anything but a depthwise convolution
    are left alone.

    Returns:
        The layers in the file's order, some with the reason why they are left alone; and the
        function that writes the file to a path, given the names of the layers changed.

    Raises:
        MissingExtraError: the reader's package is not installed.
        SourceError: the file is damaged, or of another format by its bytes.
    """
    read_path(str(path), lambda name: None)  # says what is wrong with a damaged file
    kind = recognise(path)
    if kind is None or kind is not suffix_format(path):
        held = "is no model" if kind is None else f"is a model of {kind.name}"
        raise SourceError(f"{path} {held} by its bytes; give it the suffix of its format")
    views: dict[str, Array] = {}  # (C, 1, k_y, k_x) in the memory

    def kernel(name: str, conv: Found) -> torch.Tensor:
        view = np.asarray(conv.load()).reshape(conv.shape.out_channels, 1, *conv.shape.kernel)
        _require_writable(view, conv.identity, stored)
        owner = next((x for x in views if np.may_share_memory(views[x], view)), None)
        if owner is not None:
            raise SkipError(f"shares its weights with {owner}")
        views[name] = view
        return torch.from_numpy(view.copy())

    try:
        stored = OPENERS[kind.name](path)
        targets = stored.finder.targets(kernel)
    except KeyFiltersError:
        raise
    except Exception as error:  # of a damaged file, whatever its format's library raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{path} is not a readable {kind.name} file ({reason})") from error

    def save(target: Path, written: Collection[str]) -> None:
        for layer in targets:
            if layer.name in written:
                views[layer.name][...] = layer.weight.numpy()
        stored.save(target)

    return targets, save


def _require_writable(view: Array, identity: Hashable, stored: _Stored) -> None:
    """Raise a SkipError with the reason why a kernel cannot be written."""
    if view.dtype.kind != "f" or not any(np.may_share_memory(view, x) for x in stored.memory):
        raise SkipError(COMPUTED)
    if not view.dtype.isnative:
        raise SkipError("its weights are stored with the high byte first, which is not written")
    user = stored.users.get(identity) or stored.finder.others.get(identity)
    if identity is not None and user:
        raise SkipError(f"its weights are also used by {user}, which would change")
    first, last = byte_bounds(view)
    for other, start, stop in stored.extents:
        if other != identity and start < last and first < stop:
            raise SkipError(
                "its weights lie in bytes that also hold another constant, which would change"
            )


def _users(graphs: Iterable[T], users_of: Callable[[T], Iterable[tuple[int, str]]]) -> Users:
    """Return the first that takes each constant otherwise than as weights, by identity."""
    users: dict[Hashable, str] = {}
    for graph in graphs:
        for identity, user in users_of(graph):
            users.setdefault(identity, user)
    return users


def _open_tflite(path: Path) -> _Stored:
    finder, content = Finder(), bytearray(path.read_bytes())
    graphs = collect_tflite(memoryview(content), finder)
    buffers = enumerate(graphs[0].file.buffers if graphs else [])
    extents = [(number, *byte_bounds(buffer)) for number, buffer in buffers if buffer.size]

    def save(target: Path) -> None:
        target.write_bytes(content)

    return _Stored(
        finder, [np.frombuffer(content, np.uint8)], save, extents, _users(graphs, _lite_users)
    )


def _lite_users(graph: LiteGraph) -> Iterable[tuple[int, str]]:
    """Yield the buffers of constants and who takes them, but for weights of convolutions."""
    taken = [(tensor, "an output of the model") for tensor in graph.ends[1]]
    for operator, inputs in enumerate(graph.inputs):
        kind = graph.type(operator)
        if kind not in COPIES:
            taken += [
                (x, kind) for i, x in enumerate(inputs) if x >= 0 and (kind not in KINDS or i != 1)
            ]
    for tensor, user in taken:
        try:
            constant = graph.tensors[graph.parameter(tensor)]
        except SkipError:
            continue
        yield constant.Buffer(), f"{user} ({text_of(constant.Name())})"


def _open_openvino(path: Path) -> _Stored:
    finder, constants = Finder(), constants_of(path)
    content = bytearray(constants.read_bytes())
    memory = np.frombuffer(content, np.uint8)
    graphs = collect_openvino(path, memoryview(content), finder)
    base, extents = byte_bounds(memory)[0], []
    for held in graphs[0].net.iter():
        if {"offset", "size"} <= held.attrib.keys():
            place = int(held.attrib["offset"])
            extents.append((place, base + place, base + place + int(held.attrib["size"])))

    def save(target: Path) -> None:
        shutil.copyfile(path, target)  # it does not name the file of the constants
        target.with_suffix(".bin").write_bytes(content)

    return _Stored(finder, [memory], save, extents, _users(graphs, _openvino_users))


def _openvino_users(graph: Graph) -> Iterable[tuple[int, str]]:
    """Yield where constants begin and who takes them, but for weights of convolutions."""
    for layer in graph.layers.values():
        kind = layer.get("type", "")
        for i in range(len(layer.findall("input/port"))):
            as_weight = (kind in LAYOUTS and i == 1) or (kind in UNCHANGED and i == 0)
            if not as_weight and (place := graph.source(layer, i)) is not None:
                yield place, f"{kind} {layer.get('name', '')!r}"


def _open_keras(path: Path) -> _Stored:
    finder = Finder()
    file = KerasFile(path, finder)

    def save(target: Path) -> None:
        target.write_bytes(file.content())

    return _Stored(finder, file.memory, save)


OPENERS = {"TensorFlow Lite": _open_tflite, "OpenVINO": _open_openvino, "Keras": _open_keras}

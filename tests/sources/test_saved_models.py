"""SavedModels and checkpoints: variables by their names, what a table may hold, damage."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.sources import saved_models
from keyfilters.sources.collect import BY_NAME
from keyfilters.sources.saved_models import read_checkpoint, read_saved_model
from tests.sources.encoders import message, packed, varint
from tests.sources.test_tensorflow_graphs import (
    GROUPED,
    OTHER,
    OTHERS,
    Node,
    const,
    conv,
    equal,
    function,
)
from tests.sources.tiny_models import FILTERS, HWCM, HWIO, node

TAIL = "/.ATTRIBUTES/VARIABLE_VALUE"
OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
Entry = tuple[Node, bytes]  # of a table: fields of its message, and the bytes in the file of data


def held(value: Any, **fields: Any) -> Entry:
    numbers = {int(key.removeprefix("field")): x for key, x in fields.items()}
    return {1: 1, 2: {2: [{1: x} for x in value.shape]}, **numbers}, value.tobytes()


def text(content: bytes) -> Entry:
    """A tensor of one text: its length, a checksum of that, the text."""
    return {1: 7, 2: {}}, varint(len(content)) + bytes(4) + content


def bundle(stem: Path, entries: dict[str, Entry]) -> Path:
    """Write a tensor bundle, whose keys leave out what they share with the one before."""
    data, pairs, before = b"", [(b"", message({1: 1}))], b""
    for key, (fields, content) in sorted(entries.items()):
        pairs.append((key.encode(), message({4: len(data), 5: len(content), **fields})))
        data += content
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(f"{stem.name}.data-00000-of-00001").write_bytes(data)
    block = b""
    for name, value in pairs:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, name, strict=False))
        shared = len(list(same))
        block += packed([shared, len(name) - shared, len(value)]) + name[shared:] + value
        before = name
    block += struct.pack("<II", 0, 1)
    place = packed([0, len(block)])
    index = packed([0, 1, len(place)]) + b"z" + place + struct.pack("<II", 0, 1)
    footer = packed([0, 0, len(block) + 5, len(index)]).ljust(40, b"\0")
    table = block + bytes(5) + index + bytes(5) + footer + bytes.fromhex("57fb808b247547db")
    stem.with_name(f"{stem.name}.index").write_bytes(table)
    return stem.with_name(f"{stem.name}.index")


def saved(folder: Path, nodes: list[Node], functions: Sequence[Node] = ()) -> Path:
    graph = {1: [node("x", "Placeholder", []), *nodes], 2: {1: list(functions)}}
    (folder / "saved_model.pb").write_bytes(message({1: 1, 2: {2: graph}}))
    return folder


def test_a_saved_model_without_variables(tmp_path: Path) -> None:
    [layer] = read_saved_model(saved(tmp_path, [const("w", HWCM), conv()]), "net").layers
    equal(layer.weight, FILTERS)


def test_names_tell_where_the_graph_does_not(tmp_path: Path) -> None:
    """What the graph holds is named all the same."""
    entries = {"b/depthwise_kernel": held(OTHER), "a/depthwise_kernel": held(HWCM)}
    bundle(tmp_path / "variables" / "variables", entries)
    bank = read_saved_model(saved(tmp_path, [node("w", "VarHandleOp", []), conv()]), "net")
    assert [x.name for x in bank.layers] == ["a", "b"]
    equal(bank.layers[1].weight, OTHERS)
    [(name, why)] = bank.skipped
    assert name == "net/dw" and "not in the file" in why


def test_a_variable_is_what_is_restored_into_it(tmp_path: Path) -> None:
    """Other assignments, of constants or of what was not restored, say nothing of names."""
    bundle(tmp_path / "variables" / "variables", {"a": held(OTHER), "b": held(HWCM)})
    names = const("names", {1: 7, 2: {2: [{1: 2}]}, 8: ["a", "b"]})
    restore = [
        names,
        node("r", "RestoreV2", ["prefix", "names", "slices"]),
        const("zero", np.zeros(1, np.float32)),
        node("sum", "AddV2", ["zero:output:0", "zero:output:0"]),
        node("i", "Identity", ["r:tensors:1"]),
        node("first", "AssignVariableOp", ["counter", "zero:output:0"]),
        node("second", "AssignVariableOp", ["counter", "sum:z:0"]),
        node("third", "AssignVariableOp", ["held", "i:output:0"]),
    ]
    nodes = [
        node("h", "VarHandleOp", [], shared_name={2: "dw/kernel"}),
        node("n", "VarHandleOp", [], shared_name={2: "a"}),
        node("read", "ReadVariableOp", ["h"]),
        node("go", "StatefulPartitionedCall", ["x", "h", "n"], f={10: {1: "restore"}}),
        conv(weight="read"),
    ]
    functions = [function("restore", ["prefix", "held", "counter"], restore)]
    [layer] = read_saved_model(saved(tmp_path, nodes, functions), "net").layers
    equal(layer.weight, FILTERS)


UNREAD: dict[str, Entry] = {
    "slices": held(HWCM, field7=[{1: {1: 0, 2: 3}}]),
    "type": held(HWCM, field1=11),
}


@pytest.mark.parametrize("case", UNREAD)
def test_variables_that_are_not_read_say_why(tmp_path: Path, case: str) -> None:
    bundle(tmp_path / "variables" / "variables", {"w": UNREAD[case], "o": held(OTHER)})
    nodes = [*(node(x, "VarHandleOp", []) for x in "wo"), conv(), conv("other", "o")]
    bank = read_saved_model(saved(tmp_path, nodes), "net")
    assert [x.name for x in bank.layers] == ["other"]
    [(name, why)] = bank.skipped
    assert name == "net/dw" and "slices" in why


def test_names_of_variables_in_the_graph_of_objects(tmp_path: Path) -> None:
    """Kept by some versions; an attribute without a name keeps its key."""
    attributes = [
        {1: "VARIABLE_VALUE", 2: "stage/depthwise_kernel", 3: f"model/a{TAIL}"},
        {1: "VARIABLE_VALUE", 3: f"model/kernel{TAIL}"},
    ]
    entries = {
        OBJECTS: text(message({1: [{2: attributes}, {}]})),
        f"model/a{TAIL}": held(HWCM),
        f"model/kernel{TAIL}": held(HWIO),
        f"model/words{TAIL}": text(b"kernel"),
    }
    bank = read_checkpoint(bundle(tmp_path / "ckpt", entries), "net")
    assert [x.name for x in bank.layers] == ["stage"]
    equal(bank.layers[0].weight, FILTERS)
    assert [name for name, _ in bank.skipped] == ["net/model"]


def test_depthwise_kernels_of_keras_3(tmp_path: Path) -> None:
    """Its dense convolutions call their kernel `_kernel`, its depthwise ones `kernel`."""
    entries = {
        f"layers/0/_kernel{TAIL}": held(HWIO),
        f"layers/1/kernel{TAIL}": held(HWCM),
        f"layers/2/kernel{TAIL}": held(np.ones((4, 9), np.float32)),
        f"layers/3/kernel{TAIL}": held(np.ones((), np.float32)),
    }
    bank = read_checkpoint(bundle(tmp_path / "ckpt", entries), "net")
    assert [x.name for x in bank.layers] == ["layers/1"]
    equal(bank.layers[0].weight, FILTERS)


def test_kernels_by_name_and_shape(tmp_path: Path) -> None:
    """Which comes first is not known; three axes are a convolution's by name only."""
    entries = {
        "a/kernel": held(GROUPED),
        "b/kernel": held(GROUPED),
        "c/conv1d/kernel": held(GROUPED[0]),
        "d/attention/kernel": held(GROUPED[0]),
        "e/Adam/kernel": held(HWIO),
        "f/depthwise_kernel/Adam/m": held(HWCM),
        "f/mask": held(HWCM),
    }
    bank = read_checkpoint(bundle(tmp_path / "ckpt", entries), "net")
    assert [(x.name, x.ndim) for x in bank.layers] == [("a", 2), ("b", 2), ("c/conv1d", 1)]
    assert all("shape only" in x.note for x in bank.layers)
    equal(bank.layers[1].weight, FILTERS)
    [(slot, used)] = bank.skipped
    assert slot == "net/f/depthwise_kernel/Adam/m" and "optimiser" in used


KEY = "dw/depthwise_kernel"
BUNDLES: dict[str, dict[str, Entry]] = {
    "values": {KEY: held(HWCM, field5=8)},
    "file of data": {KEY: held(HWCM, field5=2**40)},
    "no tensors": {},
}


@pytest.mark.parametrize("case", BUNDLES)
def test_damaged_bundles_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(SourceError):
        kf.read(bundle(tmp_path / "ckpt", BUNDLES[case]))


def at(place: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda table: table[:place] + content + table[place + len(content) :]


TABLES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "short": (lambda table: table[-40:], "cut short"),
    "far block": (at(-48 + 2, b"\xff\x7f"), "behind the file"),
    "compressed": (lambda table: at(table.rindex(bytes(5), 0, -48), b"\1")(table), "compressed"),
    "shared letters": (at(0, b"\x09"), "damaged"),  # with the key before the first
}


@pytest.mark.parametrize("case", TABLES)
def test_damaged_tables_are_refused(tmp_path: Path, case: str) -> None:
    damage, what = TABLES[case]
    path = bundle(tmp_path / "ckpt", {KEY: held(HWCM)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=what):
        kf.read(path)


def test_tables_of_too_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path / "ckpt", {KEY: held(HWCM)})
    assert len(kf.read(path)) == 4
    monkeypatch.setattr(saved_models, "LARGEST_NAMES", 60)
    with pytest.raises(SourceError, match="names"):
        kf.read(path)


def test_names_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"Conv2d_{i}_depthwise/depthwise_weights" for i in (1, 2, 10)]
    layers = read_checkpoint(bundle(tmp_path / "net", {x: held(HWCM) for x in names}), "net").layers
    assert [x.name for x in layers] == [f"Conv2d_{i}_depthwise" for i in (1, 2, 10)]
    assert [x.depth for x in layers] == [0, 0.5, 1]
    assert all(BY_NAME in x.note for x in layers)

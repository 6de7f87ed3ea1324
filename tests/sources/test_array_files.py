"""Arrays without a graph: NumPy's own files, Flax's messages, Orbax's folders."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.sources.collect import BY_NAME
from tests.sources.tiny_models import FILTERS, HWCM, HWIO, OIHW

KERNEL = np.ascontiguousarray(HWCM.transpose(0, 1, 3, 2))  # (k_y, k_x, 1, out), as Flax has it


def check(path: Path, expected: Any = FILTERS) -> Layer:
    [layer] = kf.read(path).layers
    expected = np.ascontiguousarray(expected, np.float32)
    np.testing.assert_array_equal(layer.weight.view(np.uint32), expected.view(np.uint32))
    return layer


# ------------------------------------------------------------------ NumPy


def npy(value: Any, version: int = 1, fortran: bool = False, shape: Any = None) -> bytes:
    shape = value.shape if shape is None else shape
    header = f"{{'descr': '{value.dtype.str}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    data: bytes = value.tobytes("F" if fortran else "C")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize(("version", "fortran"), [(1, False), (2, True), (3, False)])
def test_one_array(tmp_path: Path, kind: str, version: int, fortran: bool) -> None:
    value = OIHW.astype(kind)
    (tmp_path / "dw.npy").write_bytes(npy(value, version, fortran))
    np.testing.assert_array_equal(np.load(tmp_path / "dw.npy"), value)
    assert check(tmp_path / "dw.npy", value[:, 0]).name == "dw"


def test_arrays_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    others = {"names": np.array(["a"]), "phase": np.ones((4, 1, 3, 3), complex)}
    np.savez(tmp_path / "a.npz", **others, **{"dw.weight": OIHW})  # type: ignore[arg-type]
    check(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(5, 1, 3, 3), (-4, 1, 3, 3), (4, -1, 3, -3)])
def test_arrays_that_are_cut_short(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = npy(OIHW, shape=shape)
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(kf.KeyFiltersError, match="cut short"):
            kf.read(tmp_path / name)


def test_an_archive_of_arrays_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(72 * 2**20))
    with pytest.raises(kf.KeyFiltersError, match="unpacks"):
        kf.read(tmp_path / "a.npz")


# ------------------------------------------------------------------ Flax


def leaf(value: Any, shape: Any = None, kind: str = "") -> Any:
    import msgpack

    about = (value.shape if shape is None else shape, kind or value.dtype.name, value.tobytes())
    return msgpack.ExtType(1, msgpack.packb(about))


def parts() -> dict[str, Any]:
    """Return an array as Flax cuts those of more than a gigabyte."""
    flat = KERNEL.ravel()
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): x for i, x in enumerate(KERNEL.shape)},
        "chunks": {"0": leaf(flat[:20]), "1": leaf(flat[20:])},
    }


def flax(path: Path, kernel: Any, more: int = 0, wide: bool = False) -> Path:
    import msgpack

    tree: dict[str, Any] = {str(i): i for i in range(more)}
    tree["params"] = {"pw": {"kernel": leaf(HWIO)}, "dw": {"kernel": kernel}}
    content = msgpack.packb(tree)
    if wide:  # a number of entries of 32 bits
        content = b"\xdf" + struct.pack(">I", len(tree)) + content[1:]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("more", "wide", "mark"), [(0, False, 0x81), (20, False, 0xDE), (3, True, 0xDF)]
)
def test_maps_of_any_size(tmp_path: Path, more: int, wide: bool, mark: int) -> None:
    pytest.importorskip("msgpack")
    path = flax(tmp_path / "net.dat", leaf(KERNEL), more, wide)
    assert path.read_bytes()[0] == mark
    check(path)


def test_kernels_in_parts_and_of_other_types(tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    check(flax(tmp_path / "a.msgpack", parts()))
    upper = (KERNEL.view(np.uint32) >> 16).astype(np.uint16)
    expected = (FILTERS.view(np.uint32) & 0xFFFF0000).view(np.float32)
    check(flax(tmp_path / "b.msgpack", leaf(upper, kind="bfloat16")), expected)
    check(flax(tmp_path / "c.msgpack", leaf(KERNEL.astype("f2"))), FILTERS.astype("f2"))


def test_damaged_messages(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    deep: Any = leaf(KERNEL)
    for _ in range(60):
        deep = {"kernel": deep}
    short = parts()
    del short["chunks"]["1"]
    unknown = msgpack.ExtType(9, b"of another program")
    for kernel, word in (
        (leaf(KERNEL, (3, 3, 1, 5)), "45|values"),
        (deep, "deep"),
        (short, "not a readable"),
        (unknown, "no depthwise"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=word):
            kf.read(flax(tmp_path / "a.msgpack", kernel))


# ------------------------------------------------------------------ Orbax


class StandIn(ModuleType):
    """Opens arrays where a specification of TensorStore leads, and keeps them in files of NumPy."""

    def open(self, spec: dict[str, Any], **how: Any) -> Any:
        kvstore = spec["kvstore"]
        base = kvstore["base"]["path"] if kvstore["driver"] == "ocdbt" else ""
        file = Path(base + kvstore["path"], f"{kvstore['driver']}-{spec['driver']}.npy")

        def write(value: Any) -> Any:
            file.parent.mkdir(parents=True)
            Path(base, "manifest.ocdbt").touch() if base else None
            np.save(file, value)
            return done(None)

        if how.get("create"):
            return done(SimpleNamespace(write=write))
        value = np.load(file)
        return done(SimpleNamespace(shape=value.shape, read=lambda: done(value)))


def done(value: Any) -> Any:
    return SimpleNamespace(result=lambda: value)


@pytest.fixture(params=["library", "stand-in"])
def tensorstore(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "library":
        return pytest.importorskip("tensorstore")
    stand_in = StandIn("tensorstore")
    stand_in.__spec__ = ModuleSpec("tensorstore", None)
    monkeypatch.setitem(sys.modules, "tensorstore", stand_in)
    return stand_in


def entry(*keys: str, kind: Any = "jax.Array") -> dict[str, Any]:
    about = {"value_type": kind, "skip_deserialize": False}
    return {"key_metadata": [{"key": x, "key_type": 2} for x in keys], "value_metadata": about}


def orbax(folder: Path, library: Any, *, together: bool, zarr3: bool, **more: Any) -> Path:
    """Write a checkpoint: one database or a folder an array, and a list of what there is."""
    folder.mkdir(parents=True)
    entries = {}
    for layer, value in (("pw", HWIO), ("dw", KERNEL)):
        name = f"params.{layer}.kernel"
        store: dict[str, Any] = {"driver": "file", "path": f"{folder}/{name}/"}
        if together:
            base = {"driver": "file", "path": f"{folder}/"}
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}
        made = library.open(spec, create=True, dtype="float32", shape=value.shape).result()
        made.write(value).result()
        entries[str(("params", layer, "kernel"))] = entry("params", layer, "kernel")
    content = {"tree_metadata": entries | more, "use_zarr3": zarr3}
    (folder / "_METADATA").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("zarr3", [False, True])
def test_checkpoints_of_orbax(
    tmp_path: Path, tensorstore: Any, together: bool, zarr3: bool
) -> None:
    others = {"a": entry("step", kind="scalar"), "b": entry("name", kind="string"),
              "c": entry("empty", kind="None")}  # fmt: skip
    inner = orbax(
        tmp_path / "net" / "default", tensorstore, together=together, zarr3=zarr3, **others
    )
    (tmp_path / "net" / "_CHECKPOINT_METADATA").write_text("{}")
    assert check(tmp_path / "net").name == "params/dw"
    assert check(inner).name == "params/dw"


@pytest.mark.parametrize("keys", [("..", "secret"), ("params/../../secret",), ("a", "")])
def test_names_in_a_checkpoint_stay_in_its_folder(
    tmp_path: Path, tensorstore: Any, keys: tuple[str, ...]
) -> None:
    more = {"more": entry(*keys)}
    folder = orbax(tmp_path / "net", tensorstore, together=False, zarr3=False, **more)
    with pytest.raises(kf.KeyFiltersError, match="outside its own folder"):
        kf.read(folder)


def test_a_checkpoint_that_lists_nothing(tmp_path: Path, tensorstore: Any) -> None:
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(kf.KeyFiltersError, match="_METADATA"):
        kf.read(tmp_path)


def test_names_of_pytorch_decide_the_layout(tmp_path: Path) -> None:
    kernels = {"stem.weight": np.ones((32, 3, 3, 3), "f4"), "b.depthwise.weight": OIHW}
    np.savez(tmp_path / "a.npz", **kernels)
    assert check(tmp_path / "a.npz").name == "b.depthwise"
    wide = np.arange(64 * 9, dtype="f4").reshape(64, 1, 9)
    np.savez(
        tmp_path / "b.npz", **{"stem.conv.weight": np.ones((64, 3, 9), "f4"), "b.weight": wide}
    )
    check(tmp_path / "b.npz", wide)


def test_arrays_that_are_no_floats_are_named(tmp_path: Path) -> None:
    kernels = {f"{kind}/depthwise_kernel": HWCM.astype(kind) for kind in ("i1", "f4")}
    kernels["brain/depthwise_kernel"] = np.zeros(HWCM.shape, "V2")
    np.savez(tmp_path / "a.npz", **kernels)
    bank = kf.read(tmp_path / "a.npz")
    assert [x.name for x in bank.layers] == ["f4"]
    assert [name for name, _ in bank.skipped] == ["a/i1", "a/brain/depthwise_kernel"]


def test_flax_keeps_depthwise_kernels_in_groups_and_sorts_names(tmp_path: Path) -> None:
    """However a layer is called; the first one by name need not see the image."""
    msgpack = pytest.importorskip("msgpack")
    tree = {f"block_{i}": {"depthwise": {"kernel": leaf(KERNEL)}} for i in (1, 10, 2)}
    (tmp_path / "a.msgpack").write_bytes(msgpack.packb(tree))
    layers = kf.read(tmp_path / "a.msgpack").layers
    assert [x.name for x in layers] == [f"block_{i}/depthwise" for i in (1, 2, 10)]
    assert all(BY_NAME in x.note for x in layers)
    np.testing.assert_array_equal(layers[0].weight, FILTERS)
    unsorted = {key: tree[key] for key in ("block_2", "block_10", "block_1")}
    (tmp_path / "b.msgpack").write_bytes(msgpack.packb({"a": leaf(np.ones(1)), **unsorted}))
    layers = kf.read(tmp_path / "b.msgpack").layers
    assert [x.name for x in layers] == ["block_10/depthwise", "block_1/depthwise"]

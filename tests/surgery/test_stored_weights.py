"""Replacing filters inside TFLite, Keras and OpenVINO files: which bytes change, and which may not.

`tests.surgery.test_runtimes` runs such files.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.keyset import KeySet
from keyfilters.surgery.files import replace_in_file
from keyfilters.surgery.stored_weights import open_stored
from tests.cli.test_cli import run
from tests.sources.test_mutations import damaged
from tests.sources.tiny_models import CONFIG, FILTERS, HWCM, HWIO, NEEDS, TINY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
KEYS = [KeySet.random(8, size=k, seed=k) for k in (3, 5)]
MODELS = Path(__file__).parents[3] / "shared" / "models"
DEPTHWISE, CONV_2D, DEQUANTIZE, MUL = 4, 3, 6, 18


def replaced(filters: Any, dtype: Any = np.float32, keys: KeySet = KEYS[0]) -> Any:
    """The oracle: keys assigned to the stored numbers, rounded to float32 and to their own type."""
    index, a, b, _ = keys.assign(np.asarray(filters, np.float64))
    made = keys.reconstruct(index, a, b)
    return made if dtype == np.float64 else made.astype(np.float32).astype(dtype)


def replace(source: Path, **options: Any) -> tuple[Path, Any]:
    """Replace into a new folder; return the file and why layers were left, by name."""
    beside = {x: x.read_bytes() for x in source.parent.iterdir() if x.is_file()}
    target = source.parent / "new" / source.name
    report = replace_in_file(source, target, KEYS, **options)
    assert all(x.read_bytes() == content for x, content in beside.items())
    return target, report.set_index("layer")["left"]


def reason(source: Path) -> str:
    """Return the message with which a file is refused, after checking that nothing was written."""
    with pytest.raises(KeyFiltersError) as caught:
        replace(source)
    assert not (source.parent / "new").exists()
    return str(caught.value)


def changed(old: bytes, new: bytes) -> Any:
    assert len(old) == len(new)
    return np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))


def only_changed(old: bytes, new: bytes, *stored: Any) -> None:
    """Check that a file was changed inside the bytes of some arrays, each of which lies in it."""
    left = set(changed(old, new).tolist())
    for array in stored:
        start = old.index(array.tobytes())
        inside = set(range(start, start + array.nbytes))
        assert left & inside
        left -= inside
    assert not left


# ------------------------------------------------------------------ every format


def lite(dtype: Any = np.float32, **options: Any) -> Callable[[Path], Path]:
    """Write the tiny TFLite model with weights of a type; float16 lies behind DEQUANTIZE."""

    def write(folder: Path) -> Path:
        from tests.sources.tflite_builder import Model

        model = Model(**options)
        image = model.tensor([1, 8, 8, 4], name="image")
        held = np.ascontiguousarray(np.moveaxis(FILTERS, 0, -1)[None].astype(dtype))
        weight = model.tensor(held.shape, held, name="dw")
        if dtype == np.float16:
            real = model.tensor(held.shape, name="real")
            model.operator(DEQUANTIZE, [weight], [real])
            weight = real
        bias = model.tensor([4], np.zeros(4, np.float32), name="bias")  # which the runtime needs
        model.operator(DEPTHWISE, [image, weight, bias], [model.tensor([], name="made")])
        (folder / "net.tflite").write_bytes(model.write())
        return folder / "net.tflite"

    return write


def openvino(dtype: Any = np.float32, old: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        held = FILTERS.astype(dtype)
        kind = {"float32": "f32", "float16": "f16"}[held.dtype.name]
        const = constant(0, held.reshape(4, 1, 1, 3, 3), 16, kind)
        layers = [const, op(1, "Convert", "c", 1), image(2), op(3, "GroupConvolution", "dw", 2)]
        edges = [(0, 1, 0), (2, 3, 0), (1, 3, 1)]
        if old:  # IR version 7: the weights are a blob of the layer
            blobs = f'<blobs><weights offset="16" size="{held.nbytes}" precision="FP32"/></blobs>'
            data = '<data kernel="3,3" output="4" group="4" strides="1,1" dilations="1,1"/>'
            layers = [image(2), f'<layer id="3" name="dw" type="Convolution">{data}{blobs}</layer>']
            edges = [(2, 3, 0)]
        return ir(folder, layers, edges, bytes(16) + held.tobytes() + bytes(3))

    return write


def ir(folder: Path, layers: list[str], edges: list[tuple[int, int, int]], data: bytes) -> Path:
    """Write an OpenVINO model; an edge leads from a layer to an input of another."""
    lines = "".join(
        f'<edge from-layer="{a}" from-port="9" to-layer="{b}" to-port="{c}"/>' for a, b, c in edges
    )
    text = f'<?xml version="1.0"?><net name="n" version="11"><layers>{"".join(layers)}</layers>'
    (folder / "net.xml").write_text(f"{text}<edges>{lines}</edges></net>")
    (folder / "net.bin").write_bytes(data)
    return folder / "net.xml"


def constant(number: int, value: Any, offset: int, kind: str = "f32") -> str:
    shape = ",".join(map(str, value.shape))
    return (
        f'<layer id="{number}" name="c{number}" type="Const"><data element_type="{kind}" '
        f'shape="{shape}" offset="{offset}" size="{value.nbytes}"/></layer>'
    )


def image(number: int) -> str:
    return f'<layer id="{number}" name="x{number}" type="Parameter"/>'


def op(number: int, kind: str, name: str, inputs: int) -> str:
    ports = "".join(f'<port id="{i}"/>' for i in range(inputs))
    data = '<data strides="1,1" dilations="1,1" pads_begin="0,0" pads_end="0,0"/>'
    return (
        f'<layer id="{number}" name="{name}" type="{kind}">{data}<input>{ports}</input>'
        '<output><port id="9"/></output></layer>'
    )


def keras_h5(dtype: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import h5py

        with h5py.File(folder / "net.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(CONFIG)
            file["model_weights/pw/pw/kernel:0"] = HWIO
            file["model_weights/dw/dw/depthwise_kernel:0"] = HWCM.astype(dtype)
        return folder / "net.h5"

    return write


def multiplied(folder: Path) -> Path:
    """Write a Keras layer of two filters a channel, and the slot of an optimiser beside it."""
    import h5py

    layer = {"class_name": "DepthwiseConv2D", "config": {"name": "dw", "depth_multiplier": 2}}
    with h5py.File(folder / "net.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": [layer]}})
        file["model_weights/dw/dw/depthwise_kernel:0"] = HWCM.reshape(3, 3, 2, 2)
        file["optimizer_weights/adam/dw_depthwise_kernel_momentum"] = HWCM + 1
    return folder / "net.h5"


HALF = np.float16
# What writes a model, the package it needs, and the stored filters.
STORED: dict[str, tuple[Callable[[Path], Path], list[str], Any]] = {
    "tflite": (lite(), ["tflite"], np.moveaxis(FILTERS, 0, -1)),
    "tflite outside": (lite(outside=True), ["tflite"], np.moveaxis(FILTERS, 0, -1)),
    "tflite float16": (lite(HALF), ["tflite"], np.moveaxis(FILTERS, 0, -1).astype(HALF)),
    "keras_h5": (TINY["keras_h5"], NEEDS["keras_h5"], HWCM),
    "keras_zip": (TINY["keras_zip"], NEEDS["keras_zip"], HWCM),
    "keras_weights": (TINY["keras_weights"], NEEDS["keras_weights"], HWCM),
    "keras multiplied": (multiplied, NEEDS["keras_h5"], HWCM),
    "keras float16": (keras_h5(HALF), NEEDS["keras_h5"], HWCM.astype(HALF)),
    "keras float64": (keras_h5(np.float64), NEEDS["keras_h5"], HWCM.astype(np.float64)),
    "tiny openvino": (TINY["openvino"], [], FILTERS),
    "openvino": (openvino(), [], FILTERS),
    "openvino float16": (openvino(HALF), [], FILTERS.astype(HALF)),
    "openvino 7": (openvino(old=True), [], FILTERS),
}


def write(name: str, folder: Path) -> tuple[Path, Any]:
    make, needed, stored = STORED[name]
    for library in needed:
        pytest.importorskip(library)
    return make(folder), stored


def weights_of(path: Path) -> Path:
    """Return the file that holds the weights."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path


@pytest.mark.parametrize("name", STORED)
def test_only_the_filters_change_and_are_read_back_exactly(tmp_path: Path, name: str) -> None:
    source, stored = write(name, tmp_path)
    target, left = replace(source)
    assert left.to_dict() == {"dw": ""}
    [before], [after] = kf.read(source).layers, kf.read(target).layers
    expected = replaced(before.weight, stored.dtype).astype(np.float32)
    np.testing.assert_array_equal(after.weight, expected)
    assert not np.array_equal(before.weight, expected)
    old, new = weights_of(source).read_bytes(), weights_of(target).read_bytes()
    if source.suffix == ".keras":
        with zipfile.ZipFile(target) as archive:
            checksum = np.uint32(archive.getinfo("model.weights.h5").CRC)
        places = [i for i in range(len(new)) if new[i : i + 4] == checksum.tobytes()]
        assert len(places) == 2
        for place in places:
            new = new[:place] + old[place : place + 4] + new[place + 4 :]
    only_changed(old, new, np.ascontiguousarray(stored))
    if source.suffix == ".xml":
        assert source.read_bytes() == target.read_bytes()
    assert len(list(target.parent.iterdir())) == 1 + (source.suffix == ".xml")


@pytest.mark.parametrize("name", STORED)
def test_own_filters_make_the_same_file(tmp_path: Path, name: str) -> None:
    source, _ = write(name, tmp_path)
    (tmp_path / "new").mkdir()
    found, save = open_stored(source)
    for layer in found:
        layer.write_(layer.filters)
    save(tmp_path / "new" / source.name, [layer.name for layer in found])
    for file in (tmp_path / "new").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


@pytest.mark.parametrize("name", STORED)
def test_damaged_files_are_refused_in_one_sentence_or_replaced(tmp_path: Path, name: str) -> None:
    source, _ = write(name, tmp_path)
    files = sorted(x for x in tmp_path.iterdir() if x.is_file())
    whole, rng, outcomes = {x: x.read_bytes() for x in files}, np.random.default_rng(0), set()
    for _ in range(40):
        victim = files[rng.integers(len(files))]
        victim.write_bytes(damaged(whole[victim], rng))
        try:
            replace(source)
            outcomes.add("replaced")
        except KeyFiltersError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
        victim.write_bytes(whole[victim])
        for file in (tmp_path / "new").glob("*"):
            file.unlink()
    assert "refused" in outcomes


@pytest.mark.parametrize("name", ["tflite", "keras_zip", "openvino"])
def test_a_failure_leaves_files_and_folders(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = write(name, tmp_path)
    names = sorted(tmp_path.rglob("*"))

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:7])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "disk full" in reason(source)
    assert sorted(tmp_path.rglob("*")) == names


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = openvino(HALF)(tmp_path)
    spread = np.array([0.7, 0.25, -0.25, 0.25, -0.25, -0.25, -0.25, 0.25, -0.45])
    large = np.where(spread > 0, 6e4, -6e4).astype(HALF)
    source.with_suffix(".bin").write_bytes(bytes(16) + np.tile(large, 4).tobytes())
    with pytest.raises(KeyFiltersError, match="float16 cannot hold"):
        replace_in_file(source, tmp_path / "b.xml", KeySet.from_filters(spread.reshape(1, 3, 3)))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["net.bin", "net.xml"]


def test_a_suffix_of_another_format_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.h5").write_bytes(openvino()(tmp_path).read_bytes())
    with pytest.raises(SourceError, match="model of OpenVINO by its bytes"):
        replace_in_file(tmp_path / "net.h5", tmp_path / "b.h5", KEYS)


def test_the_command_line_writes_all_files_of_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = TINY["openvino"](tmp_path), tmp_path / "out"
    code, text, error = run(capsys, "replace", str(source), "--out", str(out))
    assert (code, error) == (0, "") and "net.xml" in text
    assert sorted(x.name for x in out.iterdir()) == ["net.bin", "net.xml", "replace.csv"]
    keys = KeySet.published("lindeberg2026-B", 3)
    np.testing.assert_array_equal(
        kf.read(out / "net.xml").layers[0].weight, replaced(FILTERS, keys=keys)
    )


# ------------------------------------------------------------------ Keras


def chunked(content: Path | io.BytesIO) -> None:
    import h5py

    with h5py.File(content, "w") as file:
        file["layers/conv2d/vars/0"] = HWIO
        options = {"chunks": (2, 2, 4, 1), "compression": "gzip", "fletcher32": True}
        file.create_dataset("layers/depthwise_conv2d/vars/0", data=HWCM, **options)
        file["layers/depthwise_conv2d/vars"].attrs["name"] = "dw"
        file.create_dataset("layers/dense/vars/0", data=np.arange(400.0), chunks=(7,))


def datasets(content: Path | io.BytesIO) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item[()], item.chunks, item.compression, item.fletcher32)
        found[f"{name} attributes"] = dict(item.attrs)

    with h5py.File(content, "r") as file:
        file.visititems(take)
    return found


def test_keras_datasets_in_chunks(tmp_path: Path) -> None:
    pytest.importorskip("h5py"), pytest.importorskip("pyfive")
    source = tmp_path / "net.weights.h5"
    chunked(source)
    target, left = replace(source)
    assert left.to_dict() == {"dw": ""}
    before, after = datasets(source), datasets(target)
    (new, *how), (_, *as_before) = (
        x.pop("layers/depthwise_conv2d/vars/0") for x in (after, before)
    )
    assert how == as_before
    np.testing.assert_array_equal(np.moveaxis(new[..., 0], -1, 0), replaced(FILTERS))
    assert repr(after) == repr(before)


def test_keras_layers_that_share_a_dataset(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("pyfive")
    source = tmp_path / "net.weights.h5"
    with h5py.File(source, "w") as file:
        for name in ("depthwise_conv2d", "depthwise_conv2d_1"):
            place = f"layers/{name}/vars"
            file[f"{place}/0"] = file.get("layers/depthwise_conv2d/vars/0", HWCM)
            file[place].attrs["name"] = name
    target, left = replace(source)
    assert left.tolist() == ["", "shares its weights with depthwise_conv2d"]
    only_changed(source.read_bytes(), target.read_bytes(), HWCM)


def test_keras_datasets_in_chunks_need_h5py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py"), pytest.importorskip("pyfive")
    chunked(tmp_path / "net.weights.h5")
    monkeypatch.setattr("keyfilters.surgery.keras_weights.find_spec", lambda name: None)
    assert "pip install h5py" in reason(tmp_path / "net.weights.h5")


def archive(path: Path, weights: bytes, *, packed: bool, streamed: bool = False) -> None:
    """Write a Keras archive; streamed to a pipe, checksums stand behind the data."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not streamed

    made = Pipe()
    with zipfile.ZipFile(made, "w") as new:
        new.comment = b"ours"
        members = [("metadata.json", b"{}"), ("model.weights.h5", weights)]
        members += [("config.json", json.dumps(CONFIG).encode()), ("assets/a.txt", b"a" * 999)]
        for i, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name, (2001, 2, 3, 4, 5, 2 * i))
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            info.external_attr = 0o640 << 16
            new.writestr(info, content)
    path.write_bytes(made.getvalue())


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize(("packed", "streamed"), [(False, False), (False, True), (True, False)])
def test_other_members_of_an_archive_stay(
    tmp_path: Path, packed: bool, streamed: bool, in_chunks: bool
) -> None:
    pytest.importorskip("h5py"), pytest.importorskip("pyfive")
    TINY["keras_weights"](tmp_path)
    held = io.BytesIO((tmp_path / "net.weights.h5").read_bytes())
    if in_chunks:
        chunked(held := io.BytesIO())
    source = tmp_path / "net.keras"
    archive(source, held.getvalue(), packed=packed, streamed=streamed)
    target, left = replace(source)
    assert left["dw"] == ""
    np.testing.assert_array_equal(kf.read(target).layers[0].weight, replaced(FILTERS))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
        assert new.testzip() is None and new.comment == b"ours"
        for a, b in zip(old.infolist(), new.infolist(), strict=True):
            assert (a.filename, a.date_time, a.compress_type, a.external_attr) == (
                *(b.filename, b.date_time, b.compress_type, b.external_attr),
            )
            assert (old.read(a) == new.read(b)) is (a.filename != "model.weights.h5")
        inside = [io.BytesIO(x.read("model.weights.h5")) for x in (old, new)]
    before, after = map(datasets, inside)
    assert repr(before.pop("layers/conv2d/vars/0")) == repr(after.pop("layers/conv2d/vars/0"))
    if not packed and not in_chunks:
        places = changed(source.read_bytes(), target.read_bytes())
        assert len(places) <= HWCM.nbytes + 8


def test_keras_numbers_with_the_high_byte_first_are_left(tmp_path: Path) -> None:
    pytest.importorskip("h5py"), pytest.importorskip("pyfive")
    assert "high byte first" in reason(keras_h5(">f4")(tmp_path))


def test_a_user_block_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("pyfive")
    with h5py.File(tmp_path / "net.h5", "w", userblock_size=512) as file:
        file["dw/depthwise_kernel:0"] = HWCM
    with pytest.raises(SourceError, match="user block"):
        kf.read(tmp_path / "net.h5")


def test_slots_of_an_optimiser_are_no_layers(tmp_path: Path) -> None:
    pytest.importorskip("h5py"), pytest.importorskip("pyfive")
    assert [layer.name for layer in kf.read(multiplied(tmp_path)).layers] == ["dw"]


# ------------------------------------------------------------------ TFLite


def lite_model(folder: Path, build: Callable[[Any, Any], None], **options: Any) -> tuple[Path, Any]:
    """Write a model of two depthwise layers, "one" and "two", and what `build` adds to it."""
    pytest.importorskip("tflite")
    from tests.sources.tflite_builder import Model

    model, tensors = Model(**options), {}
    x = model.tensor([1, 20, 20, 4], name="image")
    for i, name in enumerate(("one", "two")):
        held = np.ascontiguousarray(np.moveaxis(FILTERS + i, 0, -1)[None])
        tensors[name] = model.tensor(held.shape, held, name=name)
        made = model.tensor([1, 20, 20, 4], name=f"{name} made")
        model.operator(DEPTHWISE, [x, tensors[name]], [made])
        x = made
    build(model, tensors)
    (folder / "net.tflite").write_bytes(model.write())
    return folder / "net.tflite", np.ascontiguousarray(np.moveaxis(FILTERS + 1, 0, -1))


def multiplies(model: Any, tensors: Any) -> None:
    model.operator(MUL, [model.tensor([1, 3, 3, 4]), tensors["one"]], [model.tensor([1, 3, 3, 4])])


def is_dense_too(model: Any, tensors: Any) -> None:
    held = model.graphs[-1][0][tensors["one"]]
    weight = model.tensor([1, 3, 3, 4], name="dense", buffer=held["buffer"])
    model.operator(CONV_2D, [model.tensor([1, 9, 9, 4]), weight], [model.tensor([])])


def other_view(model: Any, tensors: Any) -> None:
    held = model.graphs[-1][0][tensors["one"]]
    row = model.tensor([36], name="row", buffer=held["buffer"])
    model.operator(MUL, [model.tensor([36]), row], [model.tensor([36])])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (multiplies, "also used by MUL (one)"),
        (is_dense_too, "also used by dense"),
        (other_view, "also used by MUL (row)"),
    ],
)
def test_tflite_weights_that_others_use_are_left(
    tmp_path: Path, build: Callable[[Any, Any], None], words: str
) -> None:
    source, two = lite_model(tmp_path, build)
    target, left = replace(source)
    assert words in left["one"] and left["two"] == ""
    only_changed(source.read_bytes(), target.read_bytes(), two)


def test_tflite_layers_that_share_weights(tmp_path: Path) -> None:
    def again(model: Any, tensors: Any) -> None:
        made = [model.tensor([1, 20, 20, 4])]
        model.operator(DEPTHWISE, [model.tensor([1, 20, 20, 4]), tensors["two"]], made)

    source, two = lite_model(tmp_path, again)
    target, left = replace(source)
    assert left.to_dict() == {"one": "", "two": "", "two (2)": "shares its weights with two"}
    one = np.ascontiguousarray(np.moveaxis(FILTERS, 0, -1))
    only_changed(source.read_bytes(), target.read_bytes(), one, two)


def test_tflite_buffers_that_overlap(tmp_path: Path) -> None:
    source, _ = lite_model(tmp_path, lambda model, tensors: None, outside=True)
    content = bytearray(source.read_bytes())
    start = len(content) - 2 * FILTERS.nbytes
    at = content.index((start + FILTERS.nbytes).to_bytes(8, "little"))
    content[at : at + 8] = (start + 4).to_bytes(8, "little")
    source.write_bytes(content)
    assert "also hold another constant" in reason(source)


def test_quantised_tflite_weights_are_left_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    from tests.sources.tflite_builder import Model

    def integers(model: Any, tensors: Any = None) -> None:
        held = np.arange(36, dtype=np.int8).reshape(1, 3, 3, 4)
        weight = model.tensor(held.shape, held, name="int", scale=[0.1], zero=[0])
        model.operator(DEPTHWISE, [model.tensor([1, 9, 9, 4]), weight], [model.tensor([])])

    target, left = replace(lite_model(tmp_path, integers)[0])
    assert "quantised" in left["int"] and left["one"] == left["two"] == ""
    target.unlink()
    target.parent.rmdir()
    integers(model := Model())
    (tmp_path / "net.tflite").write_bytes(model.write())
    assert "quantised" in reason(tmp_path / "net.tflite")


def test_chosen_layers_of_a_tflite_file(tmp_path: Path) -> None:
    source, two = lite_model(tmp_path, lambda model, tensors: None)
    target, left = replace(source, layers=["two"])
    assert left["one"] == "not among the layers asked for"
    only_changed(source.read_bytes(), target.read_bytes(), two)


# ------------------------------------------------------------------ OpenVINO

ONE, TWO = FILTERS.reshape(4, 1, 1, 3, 3), FILTERS.reshape(4, 1, 1, 3, 3) + 1


def two_layers(folder: Path, layers: list[str], edges: list[tuple[int, int, int]]) -> Path:
    """Write a model of two depthwise layers, "one" and "two", and more layers from number 10 on."""
    held = [constant(0, ONE, 0), constant(1, TWO, ONE.nbytes), image(2)]
    held += [op(3, "GroupConvolution", "one", 2), op(4, "GroupConvolution", "two", 2)]
    own = [(2, 3, 0), (0, 3, 1), (3, 4, 0), (1, 4, 1)]
    return ir(folder, held + layers, own + edges, ONE.tobytes() + TWO.tobytes())


USED = {
    "added": ([op(10, "Add", "sum", 2)], [(2, 10, 0), (0, 10, 1)], "Add 'sum'"),
    "returned": ([op(10, "Result", "r", 1)], [(0, 10, 0)], "Result 'r'"),
    "converted": (
        [op(10, "Convert", "c", 1), op(11, "Add", "sum", 2)],
        [(0, 10, 0), (10, 11, 0), (2, 11, 1)],
        "Add 'sum'",
    ),
    "stored once": (
        [constant(10, ONE, 0), op(11, "Add", "sum", 2)],
        [(10, 11, 0), (2, 11, 1)],
        "Add 'sum'",
    ),
    "overlapping": (
        [constant(10, ONE[:, 0, 0, :2], 4), op(11, "Add", "sum", 2)],
        [(10, 11, 0), (2, 11, 1)],
        "another constant",
    ),
    "dense": (
        [constant(10, ONE.reshape(1, 4, 3, 3), 0), op(11, "Convolution", "dense", 2)],
        [(2, 11, 0), (10, 11, 1)],
        "used by dense",
    ),
}


@pytest.mark.parametrize("way", USED)
def test_openvino_weights_that_others_use_are_left(tmp_path: Path, way: str) -> None:
    layers, edges, words = USED[way]
    source = two_layers(tmp_path, layers, edges)
    target, left = replace(source)
    assert words in left["one"] and left["two"] == ""
    only_changed(*(weights_of(x).read_bytes() for x in (source, target)), TWO)


def test_openvino_layers_that_share_weights(tmp_path: Path) -> None:
    layers = [constant(10, TWO, ONE.nbytes), op(11, "GroupConvolution", "three", 2)]
    source = two_layers(tmp_path, layers, [(4, 11, 0), (10, 11, 1)])
    target, left = replace(source)
    assert left.to_dict() == {"one": "", "two": "", "three": "shares its weights with two"}
    only_changed(*(weights_of(x).read_bytes() for x in (source, target)), ONE, TWO)


def test_openvino_weights_that_are_scaled_are_left(tmp_path: Path) -> None:
    layers = [constant(10, np.zeros(1, np.float32), 2 * ONE.nbytes)]
    layers += [op(11, "Multiply", "scale", 2), op(12, "GroupConvolution", "three", 2)]
    source = two_layers(tmp_path, layers, [(10, 11, 0), (1, 11, 1), (4, 12, 0), (11, 12, 1)])
    with source.with_suffix(".bin").open("ab") as file:
        file.write(b"abcd")
    target, left = replace(source)
    assert "also used by Multiply" in left["two"] and "quantised or computed" in left["three"]
    only_changed(*(weights_of(x).read_bytes() for x in (source, target)), ONE)


def test_constants_of_another_model_are_not_overwritten(tmp_path: Path) -> None:
    source = openvino()(tmp_path)
    (tmp_path / "b.bin").write_bytes(b"of another model")
    for name in ("b.xml", "net.XML"):
        with pytest.raises(KeyFiltersError, match=r"\.bin would be overwritten"):
            replace_in_file(source, tmp_path / name, KEYS)
    assert (tmp_path / "b.bin").read_bytes() == b"of another model"
    replace_in_file(source, source, KEYS, overwrite=True)
    np.testing.assert_array_equal(kf.read(source).layers[0].weight, replaced(FILTERS))


# ------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("rfb320/rfb320.tflite", "tflite"),
        ("pose-cpm/model.tflite", "tflite"),
        ("keras/fer_emotion_model.hdf5", "pyfive"),
    ],
)
def test_real_files_differ_in_their_filters_only(tmp_path: Path, name: str, package: str) -> None:
    if not (MODELS / name).is_file():
        pytest.skip("no models beside this checkout")
    pytest.importorskip(package)
    source, target = MODELS / name, tmp_path / Path(name).name
    keys = [KeySet.published("lindeberg2026-B", size=k) for k in (3, 7)]
    report = replace_in_file(source, target, keys)
    assert not report["left"].any()
    stored = []
    for a, b in zip(kf.read(source).layers, kf.read(target).layers, strict=True):
        size = next(x for x in keys if x.size == a.size[0])
        np.testing.assert_array_equal(b.weight, replaced(a.weight, keys=size))
        stored.append(np.ascontiguousarray(np.moveaxis(a.weight, 0, -1)))
    only_changed(source.read_bytes(), target.read_bytes(), *stored)
